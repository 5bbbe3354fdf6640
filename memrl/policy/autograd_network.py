"""A Hugging Face model of any kind as the network of a pack, through its own forward pass and autograd."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from memrl.policy.activations import Activations, replace_modules
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.experts import PackedExperts
from memrl.policy.network import PackedNetwork
from memrl.policy.output_head import build_head, find_body


class _Adapted(torch.autograd.Function):
    """base(x) + scale · B A x, whose backward adds the adapters' gradients to the pack's own tensor in place.

    Autograd's own accumulation would make a tensor the size of each adapter for every level of the answer tree.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tracked: Tensor, layer: "PackedLinear") -> Tensor:
        out = layer.base(x)
        low = torch.bmm(x.to(layer.A.dtype), layer.A.transpose(1, 2)).mul_(layer.scale)
        ctx.save_for_backward(x, low)
        ctx.layer = layer
        return (out.to(low.dtype) + torch.bmm(low, layer.B)).to(out.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, low), layer = ctx.saved_tensors, ctx.layer
        wide = grad_out.to(low.dtype)
        grad_low = torch.bmm(wide, layer.B.transpose(1, 2)).mul_(layer.scale)
        layer.grad_B.add_(torch.bmm(low.transpose(1, 2), wide))
        layer.grad_A.add_(torch.bmm(grad_low.transpose(1, 2), x.to(low.dtype)))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad_x = (grad_out @ layer.base.weight).to(low.dtype) + torch.bmm(grad_low, layer.A)
        return grad_x.to(grad_out.dtype), None, None


class PackedLinear(nn.Module):
    """A frozen linear layer with room for one adapter a cell.

    Args:
        name: the layer's path in the model.
        base: the layer.
    """

    A: Tensor
    B: Tensor
    grad_A: Tensor
    grad_B: Tensor
    scale: Tensor

    def __init__(self, name: str, base: nn.Linear) -> None:
        super().__init__()
        self._name = name
        self.base = base.requires_grad_(False)
        self.weight = base.weight
        self._tracked = torch.zeros((), requires_grad=True)

    def attach(self, adapters: AdapterPack) -> None:
        """Takes views of the pack's adapters and of their gradient."""
        slot = adapters.slots[self._name]
        self.A, self.B = adapters.view_A(adapters.parameters, slot), adapters.view_B(adapters.parameters, slot)
        self.grad_A, self.grad_B = adapters.view_A(adapters.gradient, slot), adapters.view_B(adapters.gradient, slot)
        self.scale = adapters.scale

    def forward(self, x: Tensor) -> Tensor:
        """Applies base and adapters: (cells, tokens, d_in), or (cells · tokens, d_in), to the same of d_out."""
        by_cell = x.reshape(len(self.A), -1, x.shape[-1])
        out = _Adapted.apply(by_cell, self._tracked, self)
        return out.reshape(*x.shape[:-1], -1)


class AutogradNetwork(PackedNetwork):
    """A causal language model with its linear layers and experts packed; its attention must take a 4D mask.

    While a walk is under way the model's layers carry the adapters; between walks it is the plain model.

    Args:
        model: the base model, frozen.
        prompts: token ids of each root's prompt.
        root_cell: the cell of each root, ascending; int64 (roots,).
        adapters: one per cell.
        activations: what the walk keeps for the update.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int] | np.ndarray],
        root_cell: np.ndarray,
        adapters: AdapterPack,
        activations: Activations,
    ) -> None:
        self._body = find_body(model)
        super().__init__(prompts, root_cell, adapters, build_head(model, self._body))
        self._model, self._activations = model, activations
        self._layers = pack_layers(model, adapters)
        self._keys_values = DynamicCache()

    def _start(self) -> None:
        for layer in self._layers.values():
            layer.attach(self._adapters)
        self._activations.start()
        self._keys_values = DynamicCache()

    def backpropagate(self, loss: Tensor) -> None:
        """See PackedNetwork.backpropagate."""
        self._keys_values = DynamicCache()
        with replace_modules(self._model, self._layers):
            self._activations.backpropagate(loss, lambda: self._compute(0, None))

    def _feed(self, first_chunk: int) -> Tensor:
        return self._activations.feed(lambda: self._compute(first_chunk, self._keys_values))

    def _compute(self, first_chunk: int, keys_values: DynamicCache | None) -> Tensor:
        """Feeds the chunks from the first on; returns the last states of those of their rows that are read."""
        rows, device = self._tree.pad(first_chunk), self._model.device
        with replace_modules(self._model, self._layers):
            states = self._model.get_submodule(self._body.path)(
                input_ids=torch.from_numpy(rows.token).to(device),
                attention_mask=torch.from_numpy(rows.mask).to(device, self._model.dtype),
                position_ids=torch.from_numpy(rows.position).to(device),
                past_key_values=keys_values,
                use_cache=keys_values is not None,
            ).last_hidden_state
        unread = 0 if first_chunk else self._tree.num_unread
        cell, place = (torch.from_numpy(index[unread:]).to(device) for index in (rows.cell, rows.place))
        return states[cell, place]


def pack_layers(model: nn.Module, adapters: AdapterPack) -> dict[str, PackedLinear | PackedExperts]:
    """The layers of a model that the pack has adapters for, with room for them, by path."""
    layers: dict[str, PackedLinear | PackedExperts] = {}
    for slot in adapters.slots.values():
        path = slot.name if slot.num_experts is None else slot.name.rpartition(".")[0]
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear):
            layers[path] = PackedLinear(path, module)
        elif path not in layers:
            layers[path] = PackedExperts(path, module)
    return layers
