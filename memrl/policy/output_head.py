"""A causal language model cut in two: the body, whose last hidden states are kept, and what makes logits of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from memrl.policy.activations import replace_modules
from memrl.policy.next_tokens import Head

_MOST_NUMBERS = 2**24
"""Weights of a head that are widened to float32 at a time."""


@dataclass(frozen=True)
class Body:
    """The part of a model before its head.

    Attributes:
        path: where it lies in the model.
        output_type: what it returns, with the states as `last_hidden_state`.
    """

    path: str
    output_type: type[ModelOutput]


def find_body(model: PreTrainedModel) -> Body:
    """The outermost module that returns the hidden states, found by feeding one token.

    Raises:
        ValueError: the model has none.
    """
    found: list[Body] = []

    def note(path: str) -> Callable[[nn.Module, object, object], None]:
        def see(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, ModelOutput) and "last_hidden_state" in output:
                found.append(Body(path, type(output)))

        return see

    hooks = [module.register_forward_hook(note(path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(f"model must have a body that returns its last hidden states, got {type(model).__name__}")
    return found[-1]


def build_head(model: PreTrainedModel, body: Body) -> Head:
    """What a model's own forward pass does after its body; of one in half precision, the last product in float32.

    Args:
        model: the base model.
        body: as `find_body` gave it.
    """
    last: Any = model.get_output_embeddings()
    path = next(path for path, module in model.named_modules() if module is last)
    is_half = model.dtype in (torch.bfloat16, torch.float16) and isinstance(last, nn.Linear)
    wide = {path: _WideLinear(last)} if is_half else {}

    def score(states: Tensor) -> Tensor:
        given = _Given(body.output_type(last_hidden_state=states[None]))  # pyright: ignore[reportCallIssue]
        ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
        with replace_modules(model, {body.path: given, **wide}):
            return model(input_ids=ids, use_cache=False).logits[0]

    return Head(score, last.weight.shape[0])


class _Given(nn.Module):
    """Returns the same output whatever it is asked."""

    def __init__(self, output: ModelOutput) -> None:
        super().__init__()
        self._output = output

    def forward(self, *inputs: object, **named: object) -> ModelOutput:
        return self._output


class _WideLinear(nn.Module):
    """A linear layer in half precision whose products are summed and returned in float32."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self._base = base

    def forward(self, x: Tensor) -> Tensor:
        out = _WideProduct.apply(x.flatten(0, -2), self._base.weight)
        out = out if self._base.bias is None else out + self._base.bias
        return out.unflatten(0, x.shape[:-1])


class _WideProduct(torch.autograd.Function):
    """x times the transpose of a weight, of which some rows at a time are widened."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return torch.cat([F.linear(x.float(), part.float()) for part in _split(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = _split(ctx.weight)
        slopes = grad_out.split([len(part) for part in parts], dim=-1)
        total = torch.zeros((len(grad_out), ctx.weight.shape[1]), device=grad_out.device)
        for slope, part in zip(slopes, parts, strict=True):
            total.addmm_(slope, part.float())
        return total.to(ctx.dtype), None


def _split(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.detach().split(max(1, _MOST_NUMBERS // weight.shape[1]))
