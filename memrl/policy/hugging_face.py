"""Any Hugging Face model as the network of a pack, through its own forward pass and autograd."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from memrl.policy.adapter_pack import AdapterPack
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
    """A frozen linear layer with room for one adapter a cell; without adapters it is the layer itself."""

    A: Tensor
    B: Tensor
    grad_A: Tensor
    grad_B: Tensor
    scale: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.weight = base.weight
        self._tracked = torch.zeros((), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        """Applies base and adapters: (cells, tokens, d_in) to (cells, tokens, d_out)."""
        out: Any = _Adapted.apply(x, self._tracked, self)
        return out


class HuggingFaceNetwork:
    """A causal language model with its linear layers packed; its attention must take a 4D mask.

    While a walk is under way the model's linear layers carry the adapters; between walks it is the plain model.

    Args:
        model: the base model, frozen.
        prompts: token ids of each cell's prompt.
        adapters: of the same cells.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], adapters: AdapterPack) -> None:
        self._model: Any = model
        self._adapters = adapters
        self._tree = PaddedTree(prompts, model.device)
        linears = {name: model.get_submodule(name) for name in adapters.slots}
        self._layers = {name: PackedLinear(m) for name, m in linears.items() if isinstance(m, nn.Linear)}
        self._keys_values = DynamicCache()

    def prefill(self) -> Tensor:
        """See PackedNetwork.prefill."""
        for name, layer in self._layers.items():
            slot, pack = self._adapters.slots[name], self._adapters
            layer.A, layer.B, layer.scale = (
                pack.view_A(pack.parameters, slot),
                pack.view_B(pack.parameters, slot),
                pack.scale,
            )
            layer.grad_A, layer.grad_B = pack.view_A(pack.gradient, slot), pack.view_B(pack.gradient, slot)
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
                attention_mask=visible[:, None],
                position_ids=positions,
                past_key_values=self._keys_values,
                use_cache=True,
                logits_to_keep=logits_to_keep,
            ).logits
        finally:
            self._swap({name: layer.base for name, layer in self._layers.items()})

    def _swap(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, module)
