"""The prior over the tree of answers against closed forms, and against scoring every answer on its own."""

import math

import numpy as np
import pytest
import torch

from memrl.policy.base_model import EncodedTask, encode_task
from memrl.policy.calibration import (
    Prior,
    check_calibrated,
    compute_answer_log2,
    iterate_trees,
    measure_prior,
)
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer

TOKENIZER = build_embedded_tokenizer()
MODEL = build_embedded_model(seed=3).double().eval()
PROMPTS = [(10, "single_step"), (12, "single_step"), (101, "single_step"), (2, "multi_step"), (11, "multi_step")]


def score_one_by_one(model, task: EncodedTask) -> np.ndarray:
    """log2 P of every answer by one plain teacher-forced pass each, from the answer's text."""
    scores = []
    for guess in range(task.N):
        text = "".join(task.answer_format.spans(task.answer_format.digits(guess)))
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        if task.env_type == "single_step":
            ids.append(TOKENIZER.eos_token_id)
        sequence = torch.tensor([[*task.prompt_ids, *ids]])
        with torch.no_grad():
            logits = model(input_ids=sequence).logits[0, len(task.prompt_ids) - 1 : -1]
        log_p = torch.log_softmax(logits, dim=-1)[range(len(ids)), ids]
        scores.append(log_p.sum().item() / math.log(2))
    return np.array(scores)


@pytest.mark.parametrize(("N", "env_type"), PROMPTS)
def test_tree_pass_equals_one_pass_an_answer(N, env_type):
    task = encode_task(TOKENIZER, N, env_type)
    np.testing.assert_allclose(compute_answer_log2(MODEL, task), score_one_by_one(MODEL, task), atol=1e-10)


def test_passes_of_few_answers_cover_every_inner_node():
    task = encode_task(TOKENIZER, 101, "single_step")
    seen = np.concatenate([batch.nodes[0] for batch in iterate_trees(task, answers_per_pass=7)])
    np.testing.assert_array_equal(np.unique(seen), np.flatnonzero(~task.tree.is_leaf))


@pytest.mark.parametrize(("N", "env_type", "tokens"), [(8, "single_step", 2), (8, "multi_step", 3)])
def test_prior_of_a_policy_uniform_over_tokens(N, env_type, tokens):
    model = build_embedded_model(seed=0).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    prior = measure_prior(model, encode_task(TOKENIZER, N, env_type))
    bits = tokens * math.log2(len(TOKENIZER)) - 3
    assert prior.kl_bits == pytest.approx(bits)
    assert prior.max_deviation_bits == pytest.approx(bits)
    assert prior.well_formed_mass == pytest.approx(2.0**-bits)


def test_an_uncalibrated_prompt_is_refused_with_the_command_to_run():
    task = encode_task(TOKENIZER, 12, "multi_step", "plain", "-")
    with pytest.raises(ValueError, match=r"0\.2 bits and mass 0\.99") as error:
        check_calibrated(Prior(0.2, 0.3, 0.99), task, "some/folder")
    command = "python -m memrl.warmup_train model=some/folder N=12 env_type=multi_step bit_separator='-' output=FOLDER"
    assert command in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"mass 0\.97"):
        check_calibrated(Prior(0.05, 0.3, 0.97), task, "embedded")
    check_calibrated(Prior(0.1, 0.3, 0.98), task, "embedded")
    sequence = encode_task(TOKENIZER, 12, "multi_step", secret_length=40)
    with pytest.raises(ValueError, match="must be calibrated for N=12 env_type=multi_step secret_length=40 ") as error:
        check_calibrated(Prior(0.2, 0.3, 0.99), sequence, "embedded")
    assert "model=embedded N=12 env_type=multi_step secret_length=40 output=FOLDER" in str(error.value)


def test_the_prior_of_many_sequences_is_estimated_without_bias_from_some():
    model = build_embedded_model(seed=0).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    task = encode_task(TOKENIZER, 12, "multi_step", secret_length=20)
    prior = measure_prior(model, task)
    bits = 40 * math.log2(len(TOKENIZER)) - 20 * math.log2(12)
    assert len(task.tree.paths) == 256
    assert prior.kl_bits == pytest.approx(bits)
    assert math.log2(prior.well_formed_mass) == pytest.approx(-bits)


def test_an_encoded_task_knows_its_answers():
    single, multi = (encode_task(TOKENIZER, 100, env_type) for env_type in ("single_step", "multi_step"))
    assert TOKENIZER.decode(list(single.prompt_ids)) == "0-99:"
    assert TOKENIZER.decode(list(multi.prompt_ids)) == "bits 0-99:"
    assert (single.num_env_steps, single.max_tokens, single.stop_token_id) == (1, 3, TOKENIZER.eos_token_id)
    assert (multi.num_env_steps, multi.max_tokens, multi.stop_token_id) == (7, 7, None)
    assert multi.automaton.tokens([1, 0, 1, 0, 1, 0, 1]).tolist() == TOKENIZER("1010101")["input_ids"]
    assert encode_task(TOKENIZER, 100, "multi_step") is multi
