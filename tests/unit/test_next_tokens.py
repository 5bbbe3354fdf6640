"""Distributions that pass give what those that stay give, and their gradients, for memory of a few rows."""

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from memrl.policy import next_tokens
from memrl.policy.next_tokens import (
    Head,
    KeptDistributions,
    LinearDistributions,
    NextTokensReader,
    PassingDistributions,
)
from memrl.policy.output_head import build_head, find_body

ROWS, WIDTH, VOCABULARY = 23, 8, 50
ALPHABET = np.array([3, 7, 8, 21, 49])
WEIGHT = torch.randn((VOCABULARY, WIDTH), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HEAD = Head(lambda states: states @ WEIGHT.T, VOCABULARY)
PICKED_ROWS = np.array([0, 0, 1, 5, 5, 22, 9, 9])
PICKED = np.array([3, 49, 7, 8, 21, 3, 11, 40])
"""The last two are outside the alphabet."""


def draw_states():
    return torch.randn((ROWS, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def use(found, states):
    """All that a walk asks, and the gradient of a sum of what it picked."""
    probabilities, total = found.score(ALPHABET)
    rare = found.describe_row(9)
    picked = found.pick(PICKED_ROWS, PICKED)
    weights = torch.tensor([1.0, -2.0, 0.0, 0.5, 1.5, 3.0, -1.0, 2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * picked).sum(), states)
    return probabilities, total, rare, picked.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("most_rows", [1, 2, 7, 23])
def test_what_passes_equals_what_stays(monkeypatch, most_rows):
    monkeypatch.setattr(next_tokens, "_MOST_NUMBERS", VOCABULARY * most_rows + 1)
    states = draw_states()
    stays = use(KeptDistributions(torch.log_softmax(HEAD.score(states), dim=-1)), states)
    passes = use(PassingDistributions(states, HEAD), states)
    for got, expected in zip(passes, stays, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
    assert not passes[-1][[1, 2, 21]].any(), "rows without gradient"


@pytest.mark.parametrize("cached_rows", [1, 5, 23])
def test_the_exponentials_of_a_linear_head_give_its_distributions_and_their_gradient(monkeypatch, cached_rows):
    monkeypatch.setattr(next_tokens, "_CACHED_NUMBERS", VOCABULARY * cached_rows)
    states = draw_states()
    stays = use(KeptDistributions(torch.log_softmax(HEAD.score(states), dim=-1)), states)
    for got, expected in zip(use(LinearDistributions(states, WEIGHT), states), stays, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_a_token_far_below_the_range_of_exponentials_keeps_its_log_probability():
    states = (1e3 * draw_states().detach()[:1]).float().requires_grad_()
    found = LinearDistributions(states, WEIGHT.float())
    found.score(ALPHABET)
    expected = torch.log_softmax(states.double() @ WEIGHT.T, dim=-1)[0, ALPHABET]
    assert expected.min() < -500, "float32's exponential is 0 there"
    picked = found.pick(np.zeros(len(ALPHABET), dtype=np.int64), ALPHABET).double()
    torch.testing.assert_close(picked, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("vocabulary", "kind"), [(1023, KeptDistributions), (1024, LinearDistributions)])
def test_a_wide_vocabulary_behind_one_product_has_no_graph(vocabulary, kind):
    weight = torch.randn((vocabulary, WIDTH), dtype=torch.float64)
    head = Head(lambda states: states @ weight.T, vocabulary, weight)
    assert type(NextTokensReader(head).read(draw_states())) is kind


def test_what_few_numbers_a_walk_has_stays_and_what_is_more_passes(monkeypatch):
    monkeypatch.setattr(next_tokens, "_MOST_KEPT", 7 * VOCABULARY)
    reader, states = NextTokensReader(HEAD), draw_states()
    for _ in range(2):
        reader.start()
        levels = [type(reader.read(states[:rows])) for rows in (4, 8, 3, 1)]
        assert levels == [KeptDistributions, PassingDistributions, KeptDistributions, PassingDistributions]


def test_no_graph_holds_a_row_of_the_vocabulary(monkeypatch):
    monkeypatch.setattr(next_tokens, "_MOST_NUMBERS", 4 * VOCABULARY)
    kept = []
    states = draw_states()
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        found = PassingDistributions(states, HEAD)
        found.score(ALPHABET)
        found.pick(PICKED_ROWS[:6], PICKED[:6])
    assert max(kept, default=0) <= states.numel()


SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gemma2, whose logits are capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=5.0)),
    "opt, whose body lies deeper": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=40,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            init_std=0.3,
        )
    ),
}


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval().requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_body_and_head_make_the_models_own_logits(name):
    model, ids = build(name), torch.tensor([[5, 6, 7, 8]])
    body = find_body(model)
    states = model.get_submodule(body.path)(input_ids=ids).last_hidden_state[0].requires_grad_()
    got = build_head(model, body).score(states)
    torch.testing.assert_close(got, model(input_ids=ids).logits[0], rtol=0, atol=0)
    got[:, 3].sum().backward()
    assert states.grad is not None
    assert states.grad.any()


@pytest.mark.parametrize("name", ["llama", "gemma2, whose logits are capped"])
def test_the_head_of_a_bfloat16_model_sums_in_float32(name):
    model = build(name).to(torch.bfloat16)
    body = find_body(model)
    states = model.get_submodule(body.path)(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[0].detach()
    got = build_head(model, body).score(states.requires_grad_())
    exact = build_head(model.float(), body).score(wide := states.detach().float().requires_grad_())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)
    slopes = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (gradient,), (expected,) = (torch.autograd.grad(out, leaf, slopes) for out, leaf in ((got, states), (exact, wide)))
    torch.testing.assert_close(gradient.float(), expected, rtol=1e-2, atol=1e-2)
