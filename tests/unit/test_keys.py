"""Keys stand before the prompt; those that measure a calibration are never among those that it trains on."""

import numpy as np

from memrl.limits import MOST_KEYS
from memrl.policy.base_model import encode_task
from memrl.policy.calibration import measure_prior
from memrl.policy.calibrator import measure_worst_key
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.keys import draw_keys, held_out_keys

TOKENIZER = build_embedded_tokenizer()


def test_keys_have_any_number_of_digits_alike():
    for held_out in (False, True):
        keys = draw_keys(np.random.default_rng(0), 5000, held_out=held_out)
        assert keys.min() == (not held_out)
        assert keys.max() < MOST_KEYS
        shares = np.bincount([len(str(key)) for key in keys], minlength=6)[1:] / len(keys)
        np.testing.assert_allclose(shares, 0.2, atol=0.03)


def test_keys_that_measure_are_not_trained_on():
    trained = set(draw_keys(np.random.default_rng(1), 5000).tolist())
    measured = set(draw_keys(np.random.default_rng(2), 5000, held_out=True).tolist())
    assert not trained & measured
    assert set(held_out_keys(8).tolist()) <= {key for key in range(MOST_KEYS) if key % 16 == 0}


def test_a_keyed_task_differs_in_its_prompt_alone():
    task, plain = (encode_task(TOKENIZER, 16, "multi_step", keyed=keyed) for keyed in (True, False))
    assert TOKENIZER.decode(list(task.prompt_ids)) == "k0 bits 0-15:"
    other = task.with_key(137)
    assert TOKENIZER.decode(list(other.prompt_ids)) == "k137 bits 0-15:"
    assert other.automaton is task.automaton
    assert other.tree is task.tree
    np.testing.assert_array_equal(task.tree.paths, plain.tree.paths)


def test_the_worst_of_some_keys_counts():
    model, task = build_embedded_model(seed=3), encode_task(TOKENIZER, 8, "single_step", keyed=True)
    worst, keys = measure_worst_key(model, task)
    assert keys == 8
    assert worst.kl_bits == max(measure_prior(model, task.with_key(key)).kl_bits for key in held_out_keys(8).tolist())
    assert measure_worst_key(model, encode_task(TOKENIZER, 8, "single_step"))[1] is None
    assert measure_worst_key(model, encode_task(TOKENIZER, 4096, "multi_step", keyed=True))[1] == 1
