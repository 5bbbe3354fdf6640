"""Keys as fields of a cell: what is refused in one line, and secrets that are uniform and their own."""

import numpy as np
import pytest
from scipy.stats import chisquare

from memrl.config import TrainConfig
from memrl.task.answer_format import cell_digits, key_digits
from memrl.task.secret import draw_secrets, to_bits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_keys": 0}, "^num_keys must be at least 1, got 0"),
        ({"num_keys": 100_001}, "^num_keys must be at most 100,000, got 100001"),
        ({"num_keys": 90_000, "N": 4096}, r"^num_keys must be at most 83,333 at N=4096 \(1,000,000 bits\), got 90000"),
        (
            {"num_keys": 20_000, "N": 1 << 17},
            r"^num_keys must be at most 16,384 at N=131072 \(4 GiB\), got 20000, whose observer takes 4.88 GiB",
        ),
        ({"num_keys": 2, "secret": 1}, "^secret must be unset where there are keys, got 1"),
        ({"num_keys": 2, "rollout": "vllm"}, "^rollout must be in_process where there are keys"),
        ({"measure_every": 2}, "^measure_every must be unset where there are no keys"),
        ({"num_keys": 2, "measure_every": 0}, "^measure_every must be at least 1, got 0"),
        ({"prompt": "{key} of {N}:"}, r"^prompt must leave only {N} and {last} to be filled in, got {key}"),
        ({"num_keys": 2, "algorithm": "distill", "batch_size": 40}, "^batch_size must be a multiple of group_size=32"),
        (
            {"num_keys": 2, "algorithm": "distill", "explore": "greedy"},
            "^group_size must be 1 for explore=greedy, which asks one best question, got 32",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        TrainConfig(**fields)
    assert "\n" not in str(error.value)


def test_a_million_bits_are_allowed():
    assert TrainConfig(num_keys=100_000, N=1024).signal_bits == 1_000_000
    assert TrainConfig(num_keys=976, N=2, env_type="multi_step", secret_length=1024).signal_bits < 1_000_000


@pytest.mark.parametrize(
    ("fields", "prompts", "episodes_of_each"),
    [
        ({"group_size": 8}, 1, 8),
        ({"group_size": 8, "batch_size": 64}, 8, 8),
        ({"algorithm": "sft"}, 1, 1),
        ({"algorithm": "sft", "batch_size": 64}, 64, 1),
        ({"algorithm": "distill", "group_size": 4, "batch_size": 32}, 8, 4),
    ],
)
def test_a_batch_is_a_group_for_each_key_that_is_drawn(fields, prompts, episodes_of_each):
    config = TrainConfig(num_keys=100, **fields)
    assert (config.prompts_per_update, config.episodes_per_prompt, config.num_groups) == (prompts, episodes_of_each, 1)
    assert config.episodes_per_update == prompts * episodes_of_each


def test_every_key_has_a_uniform_secret_of_its_own():
    secrets = draw_secrets(16, seed=3, num_keys=20_000)
    assert secrets.dtype.itemsize == 1
    assert chisquare(np.bincount(secrets[:, 0], minlength=16)).pvalue > 1e-4
    pairs = 16 * secrets[:-1, 0].astype(np.int64) + secrets[1:, 0]
    assert chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_keys": 101}, {"length": 3}])
def test_secrets_differ_with_seed_keys_and_length(change):
    given = {"N": 1000, "seed": 0, "num_keys": 100, "length": 2}
    first, second = (draw_secrets(**fields)[:100].ravel()[:200] for fields in (given, given | change))
    assert (first == second).mean() < 0.05
    assert (draw_secrets(**given)[:100].ravel() == first).all()


def test_digits_write_each_key_s_secret():
    whole, bits = (key_digits(TrainConfig(num_keys=50, N=100, env_type=e)) for e in ("single_step", "multi_step"))
    assert (to_bits(whole[:, 0], 7) == bits).all()
    sequences = key_digits(TrainConfig(num_keys=50, N=100, env_type="multi_step", secret_length=5))
    assert (sequences == draw_secrets(100, 0, 50, 5)).all()
    alone = TrainConfig(N=100)
    assert (key_digits(alone) == cell_digits(alone)).all()
