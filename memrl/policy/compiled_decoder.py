"""Llama and Qwen3 decoders as the network of a pack on a CPU: exactly the tokens there are, by kernels.c.

Rows are those of a TokenTree. The last layer leaves out the prompt tokens whose output nobody reads. A level is one
call, and so is the backward pass; what they share lies in buffers that outlive a walk.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy import kernels, llama
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.network import PackedNetwork
from memrl.policy.next_tokens import Head
from memrl.policy.panels import find_panels


class _Buffers:
    """Tensors with one row per token, by name; they grow together and keep what is in them."""

    def __init__(self, dtype: torch.dtype, widths: dict[str, int]) -> None:
        self._dtype, self._capacity = dtype, 0
        self._tensors: dict[str, Tensor] = {}
        self.lay_out(widths)

    def lay_out(self, widths: dict[str, int]) -> None:
        """Gives the tensors their widths; those of unchanged width stay."""
        for name, width in widths.items():
            if name not in self._tensors or self._tensors[name].shape[1] != width:
                self._tensors[name] = torch.empty((self._capacity, width), dtype=self._dtype)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def addresses(self, names: Sequence[str]) -> list[int]:
        """Where the named tensors lie, until they grow."""
        return [self._tensors[name].data_ptr() for name in names]

    def reserve(self, rows: int, used: int) -> bool:
        """Makes room for so many rows; the first `used` stay. Returns whether the tensors are new ones."""
        if rows <= self._capacity:
            return False
        self._capacity = rows + rows // 4
        for name, old in self._tensors.items():
            self._tensors[name] = new = torch.empty((self._capacity, old.shape[1]), dtype=old.dtype)
            new[:used] = old[:used]
        return True


class _Linear:
    """Siblings, linear layers that read the same input: frozen weights, and where their adapters lie."""

    def __init__(self, layers: dict[str, nn.Linear], library: ctypes.CDLL) -> None:
        self._names = list(layers)
        self.widths = [m.out_features for m in layers.values()]
        self._panels = find_panels(list(layers.values()), library)
        self.d_in, self.d_out = self._panels.shape[1], sum(self.widths)

    def describe(self, adapters: AdapterPack) -> kernels.Linear:
        """The siblings with the pack's current adapters."""
        slots = [adapters.slots[name] for name in self._names]
        places = (kernels.PerLayer(*(getattr(s, name) for s in slots)) for name in ("d_out", "start_A", "start_B"))
        return kernels.Linear(len(slots), self.d_in, self.d_out, *places, self._panels.data_ptr())


class _Norm:
    """A root-mean-square norm of a row, or of several vectors in it that have weights of their own."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight, self._epsilon = weight.detach().contiguous(), epsilon

    @classmethod
    def read(cls, norm: llama.Norm) -> "_Norm":
        """One of the model's own."""
        return cls(norm.weight[None], norm.variance_epsilon)

    def describe(self) -> kernels.Norm:
        """As kernels.c takes it."""
        return kernels.Norm(*self.weight.shape, self._epsilon, self.weight.data_ptr())


class _Layer:
    """The frozen weights of one decoder layer, and buffers for its activations."""

    def __init__(self, layer: llama.DecoderLayer, siblings: list[dict[str, nn.Linear]], library: ctypes.CDLL) -> None:
        self._linears = [_Linear(named, library) for named in siblings]
        self.qkv, self.o, _, self.down = self._linears
        attention = layer.self_attn
        self.d_head, self.scaling = attention.head_dim, attention.scaling
        self.heads, self.kv_heads = (width // self.d_head for width in self.qkv.widths[:2])
        self._norms = [_Norm.read(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        if hasattr(attention, "q_norm"):
            self._norms.append(self._join_norms(attention))
        self.d = self.qkv.d_in
        self.kept = _Buffers(layer.input_layernorm.weight.dtype, {})

    def _join_norms(self, attention: llama.Attention) -> _Norm:
        """The norms of queries and keys as one, whose weight differs by head."""
        weights = [(attention.q_norm, self.heads), (attention.k_norm, self.kv_heads)]
        joined = torch.cat([norm.weight.expand(heads, -1) for norm, heads in weights])
        return _Norm(joined, attention.q_norm.variance_epsilon)

    def attach(self, adapters: AdapterPack) -> None:
        """Takes the pack's current adapters, and makes buffers of their rank."""
        self._described = [linear.describe(adapters) for linear in self._linears]
        low = (len(linear.widths) * adapters.rank for linear in self._linears)
        widths = dict(zip(("low_qkv", "low_o", "low_gate_up", "low_down"), low, strict=True))
        widths |= dict.fromkeys(("x", "middle"), self.d) | dict.fromkeys(("inverse1", "inverse2"), 1)
        widths |= {"qkv_out": self.qkv.d_out, "mixed": self.o.d_in, "log_sum": self.heads}
        widths |= {"gate_up_out": 2 * self.down.d_in}
        normed = self._norms[2].weight if len(self._norms) > 2 else torch.empty((0, 0))
        widths |= {"raw_qk": normed.numel(), "inverse_qk": len(normed)}
        self.kept.lay_out(widths)

    def describe(self) -> kernels.Layer:
        """The layer with its current adapters and buffers."""
        norms = [norm.describe() for norm in self._norms] + [kernels.Norm()] * (3 - len(self._norms))
        return kernels.Layer(*self._described, *norms, *self.kept.addresses(kernels.ACTIVATIONS))


class CompiledDecoderNetwork(PackedNetwork):
    """A Llama or Qwen3 decoder as the network of a pack, on a CPU.

    Args:
        model: a base model for which `llama.is_supported` holds.
        prompts: token ids of each root's prompt.
        root_cell: the cell of each root, ascending; int64 (roots,).
        adapters: one per cell, laid out by `list_siblings`.
        library: `load_kernels` of the model's dtype.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int] | np.ndarray],
        root_cell: np.ndarray,
        adapters: AdapterPack,
        library: ctypes.CDLL,
    ) -> None:
        head: Any = model.get_output_embeddings()
        weight = head.weight.detach()
        scored = Head(lambda states: torch.matmul(states, weight.T), len(weight), weight)
        super().__init__(prompts, root_cell, adapters, scored)
        siblings = llama.list_siblings(model)
        body: Any = model.get_submodule("model")
        self._library = library
        self._layers = [_Layer(layer, siblings[4 * i : 4 * i + 4], library) for i, layer in enumerate(body.layers)]
        self._norm = _Norm.read(body.norm)
        self._embedding = body.embed_tokens.weight.detach()
        positions = torch.arange(model.config.max_position_embeddings)[None]
        self._turns = [t[0].contiguous() for t in body.rotary_emb(self._embedding, positions)]
        self._kept = _Buffers(self._embedding.dtype, {})
        self._attached: Tensor | None = None
        self._leaves: list[Tensor] = []

    def _start(self) -> None:
        if self._attached is not self._adapters.parameters:
            # The pack has shrunk, or it is the first walk.
            self._attach()
        self._leaves = []

    def _attach(self) -> None:
        """Takes the addresses of the pack's current tensors, and makes buffers of their rank."""
        adapters, layer = self._adapters, self._layers[0]
        self._attached = adapters.parameters
        ranks = torch.from_numpy(adapters.ranks.astype(np.int64))
        self._shared = (ranks, adapters.scale, adapters.parameters, adapters.gradient)
        shape = (adapters.num_cells, adapters.rank, adapters.parameters.shape[1])
        self._pack = kernels.Adapters(*shape, *(t.data_ptr() for t in self._shared))
        for each in self._layers:
            each.attach(adapters)
        widths = dict.fromkeys(("x", "final", "normed", "grad", "grad_normed"), layer.d) | {"inverse": 1}
        widths |= dict.fromkeys(("gated", "grad_gated"), layer.down.d_in)
        widths |= {"grad_mixed": layer.o.d_in, "grad_qkv": layer.qkv.d_out}
        self._kept.lay_out(widths | {"grad_low": 3 * adapters.rank})
        self._decoder = self._describe()

    def _describe(self) -> kernels.Decoder:
        """The decoder with its current buffers."""
        first = self._layers[0]
        heads = (first.heads, first.kv_heads, first.d_head)
        shape = (len(self._layers), first.d, *heads, 0, first.scaling)
        self._structures = (kernels.Layer * len(self._layers))(*(layer.describe() for layer in self._layers))
        addresses = (*(t.data_ptr() for t in self._turns), None, None, *self._kept.addresses(kernels.OUTPUTS))
        return kernels.Decoder(*shape, self._structures, ctypes.pointer(self._pack), self._norm.describe(), *addresses)

    def _feed(self, first_chunk: int) -> Tensor:
        num_unread = 0 if first_chunk else 1
        ids, bounds, kept = self._tree.tokens(first_chunk), self._tree.bounds(first_chunk), self._kept
        start, first_read, end = int(bounds[0, 0]), int(bounds[num_unread, 0]), int(bounds[-1, -1])
        grown = [buffers.reserve(end, used=start) for buffers in (kept, *(layer.kept for layer in self._layers))]
        if any(grown):
            self._decoder = self._describe()
        torch.index_select(self._embedding, 0, torch.from_numpy(ids), out=self._layers[0].kept["x"][start:end])
        self._point()
        self._library.forward(self._decoder, len(bounds), num_unread, bounds)
        leaf = kept["final"][first_read:end].requires_grad_()
        self._leaves.append(leaf)
        return leaf

    def _point(self) -> None:
        """Shows the rows that there are now to kernels.c."""
        tree = self._tree
        self._decoder.parent, self._decoder.position = tree.parent.ctypes.data, tree.position.ctypes.data
        self._decoder.longest = int(tree.position.max()) + 1

    def backpropagate(self, loss: Tensor) -> None:
        """See PackedNetwork.backpropagate."""
        loss.backward()
        slopes = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        assert len(slopes) == len(self._leaves), "every level is part of the loss"
        grad, bounds, unread = self._kept["grad"], self._tree.bounds(), self._tree.num_unread
        grad[:unread] = 0.0
        torch.cat(slopes, out=grad[unread : int(bounds[-1, -1])])
        self._point()
        self._library.backward(self._decoder, len(bounds), 1, bounds)
        self._leaves = []
