"""Any Hugging Face model as the network of a pack, through its own forward pass and autograd."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.experts import PackedExperts
from memrl.policy.network import PaddedTree


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
        return out + torch.bmm(low, layer.B).to(out.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, low), layer = ctx.saved_tensors, ctx.layer
        wide = grad_out.to(low.dtype)
        grad_low = torch.bmm(wide, layer.B.transpose(1, 2)).mul_(layer.scale)
        layer.grad_B.add_(torch.bmm(low.transpose(1, 2), wide))
        layer.grad_A.add_(torch.bmm(grad_low.transpose(1, 2), x.to(low.dtype)))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return grad_out @ layer.base.weight + torch.bmm(grad_low, layer.A).to(grad_out.dtype), None, None


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
        out: Any = _Adapted.apply(by_cell, self._tracked, self)
        return out.reshape(*x.shape[:-1], -1)


class HuggingFaceNetwork:
    """A causal language model with its linear layers and experts packed; its attention must take a 4D mask.

    While a walk is under way the model's layers carry the adapters; between walks it is the plain model.

    Args:
        model: the base model, frozen.
        prompts: token ids of each cell's prompt.
        adapters: of the same cells.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], adapters: AdapterPack) -> None:
        self._model: Any = model
        self._adapters = adapters
        self._tree = PaddedTree(prompts, model.device)
        self._layers = pack_layers(model, adapters)
        self._keys_values = DynamicCache()

    def prefill(self) -> Tensor:
        """See PackedNetwork.prefill."""
        for layer in self._layers.values():
            layer.attach(self._adapters)
        self._keys_values = DynamicCache()
        ids, visible, positions = self._tree.start()
        return self._forward(ids, visible, positions, logits_to_keep=1)[:, 0]

    def extend(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> Tensor:
        """See PackedNetwork.extend."""
        level = self._tree.grow(tokens, parents, cell)
        return self._forward(level.ids, level.visible, level.positions)[level.cell, level.slot]

    def backpropagate(self, loss: Tensor) -> None:
        """See PackedNetwork.backpropagate."""
        loss.backward()
        self._keys_values = DynamicCache()

    def keep(self, cells: np.ndarray) -> None:
        """See PackedNetwork.keep."""
        self._tree.keep(cells)

    def _forward(self, ids: Tensor, visible: Tensor, positions: Tensor, logits_to_keep: int = 0) -> Tensor:
        self._swap(self._layers)
        try:
            return self._model(
                input_ids=ids,
                attention_mask=self._mask(visible),
                position_ids=positions,
                past_key_values=self._keys_values,
                use_cache=True,
                logits_to_keep=logits_to_keep,
            ).logits
        finally:
            self._swap({name: layer.base for name, layer in self._layers.items()})

    def _mask(self, visible: Tensor) -> Tensor:
        """What sees what, as the model's attention takes it: the plain kind of transformers adds the mask."""
        mask = visible[:, None]
        if self._model.config.get_text_config()._attn_implementation != "eager":
            return mask
        dtype = self._model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def _swap(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, module)


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
