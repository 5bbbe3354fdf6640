"""Calibration by the head alone: what it may change, what it reaches, and that its loss is the prior's divergence."""

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from memrl.policy.base_model import encode_task, load_base_model, save_base_model
from memrl.policy.calibration import measure_prior
from memrl.policy.calibrator import calibrate_model
from memrl.policy.embedded import build_embedded_tokenizer
from memrl.policy.head import HeadRecipe, fit_head, read_states
from memrl.policy.warmup import WarmupRecipe

TOKENIZER = build_embedded_tokenizer()
TASKS = [encode_task(TOKENIZER, 12, "single_step"), encode_task(TOKENIZER, 8, "multi_step")]
SIZE = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": None, "initializer_range": 0.2}  # fmt: skip


def build_tied(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZE)).eval()
    return Gemma2ForCausalLM(Gemma2Config(**SIZE, final_logit_softcapping=30.0, query_pre_attn_scalar=32)).eval()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_its_loss_is_the_mean_divergence_of_the_prompts(kind):
    model = build_tied(kind)
    expected = sum(measure_prior(model, task).kl_bits for task in TASKS) / len(TASKS)
    losses = fit_head(model, read_states(model, TASKS), HeadRecipe(steps=1, ratio_weight=0.0))
    assert losses[0] / math.log(2) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_it_reaches_uniform_answers_by_the_rows_of_their_tokens_alone(kind, tmp_path):
    model = build_tied(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = read_states(model, TASKS)
    fit_head(model, states, HeadRecipe(steps=1500))
    priors = [measure_prior(model, task) for task in TASKS]
    assert max(prior.kl_bits for prior in priors) < 0.015
    others = torch.ones(48, dtype=torch.bool)
    others[states.tokens] = False
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            assert torch.equal(tensor[others], before[name][others])
            assert not torch.isclose(tensor[states.tokens], before[name][states.tokens]).all(dim=1).any()
        else:
            assert torch.equal(tensor, before[name]), name
    save_base_model(model, TOKENIZER, tmp_path)
    loaded, _ = load_base_model(str(tmp_path))
    assert [measure_prior(loaded, task) for task in TASKS] == priors


def test_the_body_is_warmed_up_only_where_the_head_does_not_reach_every_prompt(monkeypatch):
    monkeypatch.setattr("memrl.policy.calibrator.FULL_LIMIT", 0)
    recipe = WarmupRecipe(steps=3, learning_rate=1e-3)
    by_head = calibrate_model(build_tied("llama"), TASKS, recipe, head_recipe=HeadRecipe(steps=1500))
    assert (by_head.method, by_head.is_sound) == ("head", True)
    by_body = calibrate_model(build_tied("llama"), TASKS, recipe, head_recipe=HeadRecipe(steps=1), lora_rank=4)
    assert by_body.method == "lora"
    assert len(by_body.losses) == 3
