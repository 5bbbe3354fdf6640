"""Interference is what plain PEFT and autograd say of adapters as they begin."""

import copy
import math

import peft
import pytest
import torch

from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.embedded import build_embedded_model
from memrl.policy.interference import measure_interference

N, BITS = 16, 4


def measure_by_peft(model, tokenizer, prompt: str, draws: int, rank: int = 1024) -> float:
    """The mean cosine of the gradients of log-odds of 1 against 0, of all answers' bits, on B of a new LoRA.

    At a small rank it hangs on how A was drawn; a large one comes to the mean.
    """
    zero, one = (tokenizer.convert_tokens_to_ids(bit) for bit in "01")
    cosines = []
    for draw in range(draws):
        torch.manual_seed(draw)
        config = peft.LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        matrices = [parameter for name, parameter in adapted.named_parameters() if "lora_B" in name]
        for answer in range(N):
            bits = format(answer, f"0{BITS}b")
            ids = tokenizer(prompt + bits[:-1], return_tensors="pt", add_special_tokens=False)["input_ids"]
            logits = adapted(input_ids=ids).logits[0, -BITS:]
            gradients = [
                torch.cat([g.flatten() for g in torch.autograd.grad(odds, matrices, retain_graph=True)])
                for odds in logits[:, one] - logits[:, zero]
            ]
            cosines += [
                torch.cosine_similarity(gradients[s], gradients[t], dim=0).item() for s in range(BITS) for t in range(s)
            ]
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("base", ["embedded", "random"])
def test_it_is_what_autograd_says_of_plain_peft(base):
    model, tokenizer = load_base_model("embedded")
    if base == "random":
        model = build_embedded_model(seed=3)
    task = encode_task(tokenizer, N, "multi_step")
    ours = measure_interference(model, task, num_answers=N)
    # A cosine near zero has no relative error to speak of.
    assert ours == pytest.approx(measure_by_peft(model, tokenizer, "bits 0-15:", draws=2), rel=0.01, abs=0.006)
    assert abs(ours) <= 0.1 if base == "embedded" else ours > 0.1


@pytest.mark.pretrained
def test_that_of_a_pretrained_model_is_what_autograd_says_of_plain_peft():
    model, tokenizer = load_base_model("smollm2-135m")
    ours = measure_interference(model, encode_task(tokenizer, N, "multi_step"), num_answers=N)
    # What a drawn A adds to the mean falls as one over the rank: two ranks that memory has room for tell the limit.
    low, high = (measure_by_peft(model, tokenizer, "bits 0-15:", draws=1, rank=rank) for rank in (32, 128))
    assert ours == pytest.approx((4 * high - low) / 3, rel=0.01)


def test_a_symbol_more_of_the_alphabet_leaves_bits_as_they_are():
    """The centered logit of one bit is half its log-odds, whichever bit is drawn."""
    model, tokenizer = load_base_model("embedded")
    task = encode_task(tokenizer, N, "multi_step")
    values = {round(measure_interference(model, task, num_answers=N, seed=seed), 5) for seed in range(3)}
    assert len(values) == 1


def test_an_answer_of_one_place_has_none_and_the_model_stays_as_it_was():
    model, tokenizer = load_base_model("embedded")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert math.isnan(measure_interference(model, encode_task(tokenizer, 2, "multi_step")))
    assert -1 <= measure_interference(model, encode_task(tokenizer, 100, "single_step")) <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
