"""The warm-up's loss against the prior it lowers, and what a short warm-up does."""

import math

import numpy as np
import pytest
import torch

from memrl.policy.base_model import encode_task
from memrl.policy.calibration import compute_answer_log2, measure_prior
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.warmup import (
    AnswerSampler,
    WarmupRecipe,
    attach_lora,
    compute_warmup_loss,
    merge_lora,
    warm_up,
)

TOKENIZER = build_embedded_tokenizer()
TASKS = [encode_task(TOKENIZER, 12, "single_step"), encode_task(TOKENIZER, 11, "multi_step")]


@pytest.mark.parametrize("task", TASKS, ids=["single_step", "multi_step"])
def test_loss_over_all_answers_is_the_divergence_of_the_prior(task):
    model = build_embedded_model(seed=1).double().eval()
    loss = compute_warmup_loss(model, [task], [np.arange(task.N)], ratio_weight=0.0)
    assert loss.item() / math.log(2) == pytest.approx(measure_prior(model, task).kl_bits, rel=1e-10)


def test_loss_of_some_answers_counts_their_paths_alone():
    task, model, V = TASKS[0], build_embedded_model(seed=1).double().eval(), len(TOKENIZER)
    torch.nn.init.zeros_(model.lm_head.weight)
    # The policy gives every token 1/V. 1, 10 and 11 are three of twelve answers, so "1" has 1/4 and then ends with 1/3.
    root = math.log(V) + 9 / 12 * math.log(1 / 12) + 1 / 4 * math.log(1 / 4)
    after_one = math.log(V) + math.log(1 / 3)
    ratios = (9 * math.log(V / 12) ** 2 + math.log(V / 4) ** 2) / 10 + math.log(V / 3) ** 2
    loss = compute_warmup_loss(model, [task], [np.array([1])], ratio_weight=0.5)
    assert loss.item() == pytest.approx(root + after_one + 0.5 * ratios)


def test_loss_averages_over_prompts():
    model = build_embedded_model(seed=1).double().eval()
    every = [np.arange(task.N) for task in TASKS]
    alone = [compute_warmup_loss(model, [t], [a], 0.1).item() for t, a in zip(TASKS, every, strict=True)]
    assert compute_warmup_loss(model, TASKS, every, 0.1).item() == pytest.approx(np.mean(alone))


def test_sampler_draws_what_deviates_more_often():
    sampler = AnswerSampler([encode_task(TOKENIZER, 64, "single_step")], np.random.default_rng(0))
    sampler.deviations = [np.where(np.arange(64) == 37, 1.0, 0.01)]
    draws = [sampler.draw_answers(0, num_nodes=16) for _ in range(400)]
    counts = np.bincount(np.concatenate(draws), minlength=64)
    assert all(len(np.unique(draw)) == 8 for draw in draws)
    assert counts[37] > 350
    others = np.delete(counts, 37)
    # Hardly more than uniform: 7 of 63 others a draw, give or take five standard deviations.
    assert abs(others.mean() - 400 * 7 / 63) < 1
    assert others.min() > 0


def test_warm_up_calibrates_and_repeats_itself():
    task = encode_task(TOKENIZER, 5, "single_step")
    recipe = WarmupRecipe(steps=80, learning_rate=3e-3, seed=5, nodes_per_prompt=3, measure_every=40)
    models = [build_embedded_model(seed=2) for _ in range(2)]
    seen = []
    losses = [warm_up(model, [task], recipe, seen.append) for model in models]
    assert losses[0] == losses[1]
    assert [p.step for p in seen if p.priors is not None] == [40, 80] * 2
    assert measure_prior(models[0], task).kl_bits < 0.05


def test_warm_up_stops_at_the_targets():
    task = encode_task(TOKENIZER, 4, "multi_step")
    recipe = WarmupRecipe(steps=400, learning_rate=3e-3, measure_every=20, stop_early=True)
    model = build_embedded_model(seed=2)
    losses = warm_up(model, [task], recipe)
    assert len(losses) < 400
    assert measure_prior(model, task).max_deviation_bits <= 0.3


def test_lora_warm_up_leaves_the_base_alone_until_it_is_merged():
    task = encode_task(TOKENIZER, 8, "multi_step")
    model = build_embedded_model(seed=2)
    prior = measure_prior(model, task)
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapted = attach_lora(model, rank=8, seed=0)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 14
    assert not any("lm_head" in name or "embed" in name for name in trained)
    warm_up(adapted, [task], WarmupRecipe(steps=60, learning_rate=3e-3))
    unmerged = compute_answer_log2(adapted, task)
    merged = merge_lora(adapted)
    np.testing.assert_allclose(compute_answer_log2(merged, task), unmerged, atol=1e-4)
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    assert measure_prior(merged, task).kl_bits < 0.02 * prior.kl_bits
