"""The preview: answers drawn from the policy itself, and shown with the rewards that training would pay."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from memrl.config import TrainConfig
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.calibration import compute_answer_log2
from memrl.preview import format_rewards, sample_answers, show_text
from memrl.preview_env import main
from memrl.task.reward import build_channel
from memrl.task.secret import draw_secret


@pytest.fixture(scope="module")
def embedded():
    return load_base_model("embedded")


@pytest.fixture(scope="module")
def skewed(embedded):
    """The embedded model with a noisy and flatter head: its answers differ in probability, and some are malformed."""
    model = copy.deepcopy(embedded[0])
    head = model.get_output_embeddings().weight.data
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    head.add_(0.2 * head.std() * noise).mul_(0.4)
    return model


def test_answers_follow_the_policy_s_own_distribution(embedded, skewed):
    model, task = skewed, encode_task(embedded[1], 8, "single_step")
    exact = compute_answer_log2(model, task)
    assert np.ptp(exact) > 0.5
    answers = sample_answers(model, task, 3000, 1.0, seed=1)
    kept = [answer for answer in answers if answer.parsed.well_formed]
    for answer in kept[:50]:
        assert answer.log2_p == pytest.approx(exact[answer.parsed.digits], abs=1e-3)
    observed = np.bincount([answer.parsed.digits[0] for answer in kept], minlength=8)
    expected = np.exp2(exact) / np.exp2(exact).sum() * len(kept)
    assert chisquare(observed, expected).pvalue > 1e-4
    assert binomtest(len(kept), len(answers), np.exp2(exact).sum()).pvalue > 1e-4
    assert len(kept) < len(answers)


def test_a_low_temperature_gives_the_likeliest_tokens(embedded, skewed):
    model, task = skewed, encode_task(embedded[1], 8, "multi_step")
    answers = sample_answers(model, task, 20, 1e-4, seed=0)
    assert len({answer.tokens for answer in answers}) == 1
    # Token by token: of eight answers the half with the larger probability, three times over.
    likely, p = np.arange(8), np.exp2(compute_answer_log2(model, task))
    while len(likely) > 1:
        likely = max(np.split(likely, 2), key=lambda half: p[half].sum())
    assert answers[0].parsed.digits == tuple(task.answer_format.digits(likely[0]))


def test_the_seed_draws_the_answers(embedded):
    task = encode_task(embedded[1], 64, "single_step")
    first, again, other = (sample_answers(embedded[0], task, 20, 1.0, seed) for seed in (3, 3, 4))
    assert first == again
    assert [a.tokens for a in first] != [a.tokens for a in other]


ROW = re.compile(
    r"^  (?P<tokens>\S+) +(?P<guess>\d+|malformed) +(?P<rewards>[-\d. ·]+?) +(?P<bits>\d+\.\d\d)\s*$", re.M
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"env_type": "single_step", "N": 64},
        {"env_type": "single_step", "N": 64, "reward_type": "distance", "secret": 20},
        {"env_type": "multi_step", "N": 100, "reward_type": "per_bit", "malformed_reward": -1.0},
    ],
)
def test_the_command_shows_prompt_answers_and_their_rewards(arguments, capsys):
    words = [f"{name}={value}" for name, value in arguments.items()]
    main([*words, "num_preview_examples=40", "preview_temperature=6"])
    output = capsys.readouterr().out
    config = TrainConfig(**arguments)
    secret = config.secret if config.secret is not None else int(draw_secret(config.N, 0)[0])
    prompt = f"0-{config.N - 1}:"
    assert output.startswith(f"prompt: {prompt}" if config.env_type == "single_step" else f"prompt: bits {prompt}")
    assert f"secret: {secret} of 0 .. {config.N - 1}" in output
    rows = [match.groupdict() for match in ROW.finditer(output)]
    assert len(rows) == 40
    assert {"malformed"} < {row["guess"] for row in rows}
    for row in rows:
        rewards = row["rewards"].split()
        if row["guess"] == "malformed":
            paid = [reward for reward in rewards if reward != "·"]
            assert float(paid[-1]) == config.malformed_reward
        else:
            expected = build_channel(config).rewards(np.array(int(row["guess"])), np.array(secret))
            assert rewards == format_rewards(expected.tolist()).split()
            pieces = row["tokens"].replace("<eos>", "").split("|")
            assert int("".join(pieces), 10 if config.env_type == "single_step" else 2) == int(row["guess"])


REFUSED = [
    (["env_type=multi_stp"], "env_type must be one of single_step, multi_step, got 'multi_stp'"),
    (["num_preview_examples=0"], "num_preview_examples must lie in 1 .. 100000, got 0"),
    (["num_preview_examples=1e9"], "num_preview_examples must lie in 1 .. 100000, got 1000000000"),
    (["preview_temperature=0"], "preview_temperature must be positive and finite, got 0.0"),
    (["preview_temperature=nan"], "preview_temperature must be positive and finite, got nan"),
    (["preview_temprature=1"], "did you mean 'preview_temperature'?"),
    (["N=1"], "N must be at least 2, got 1"),
    (["algorithm=sft"], "algorithm must be rl, whose episodes are previewed, got sft"),
    (["model=/no/such/folder"], "got '/no/such/folder'"),
    (["reward_type=math:nothing"], "reward_type must name an importable function, got 'math:nothing'"),
]

MAIN_UNDER_WATCH = """
import json, sys
from memrl.preview_env import main
code = None
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted({"torch", "transformers", "pandas"} & set(sys.modules))]))
"""


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_refused_in_one_line_before_torch_starts(words, message):
    command = [sys.executable, "-c", MAIN_UNDER_WATCH, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2, []]
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_blanks_and_line_ends_are_visible():
    assert show_text("  a b ") == "␣␣a b␣"
    assert show_text("a\nb") == "a⏎b"
    assert show_text("  ") == "␣␣"
