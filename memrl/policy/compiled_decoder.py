"""Llama and Qwen3 decoders as the network of a pack on a CPU, over rows instead of padded sequences.

A row is one token of one cell: first the prompts' tokens but the last, then their last tokens, then each level of the
answer trees, by cell within each of these chunks. So base layers are matrix products over exactly the tokens there
are, the last layer leaves out the prompt tokens whose output nobody reads, and all else (adapters, norms, attention
along a row's ancestors, the MLP's gate) is kernels.c, which passes over memory once. Activations lie in buffers that
outlive a walk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy import kernels
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.decoder import group_linears


class _Buffers:
    """Tensors with one row a token, by name; they grow together and keep what is in them."""

    def __init__(self, dtype: torch.dtype, **widths: int) -> None:
        self._tensors = {name: torch.empty((0, width), dtype=dtype) for name, width in widths.items()}
        self._capacity = 0

    def __getattr__(self, name: str) -> Tensor:
        return self._tensors[name]

    def reserve(self, rows: int, used: int) -> None:
        """Makes room for so many rows; the first `used` stay."""
        if rows <= self._capacity:
            return
        self._capacity = rows + rows // 4
        for name, old in self._tensors.items():
            self._tensors[name] = new = torch.empty((self._capacity, old.shape[1]), dtype=old.dtype)
            new[:used] = old[:used]


@dataclass(frozen=True)
class _Span:
    """Some chunks of rows.

    Attributes:
        rows: from the first row to the last.
        bounds: a cell's rows of a chunk are bounds[chunk, cell] .. bounds[chunk, cell + 1]; int64 (chunks, cells + 1).
    """

    rows: slice
    bounds: Tensor

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start


class _Rows:
    """Which rows there are: what each follows, where it stands, and whose it is.

    Args:
        prompts: token ids of each cell's prompt.

    Attributes:
        prompt_ids: token ids of the prompts' rows, int64.
        prompt_lengths: tokens of each cell's prompt, int64 (cells,).
        num_unread: rows whose output nobody reads: the prompts' tokens but the last.
        parent: the row that each follows, -1 at a prompt's first token; int64 (rows,).
        position: tokens before each; int64 (rows,).
    """

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompts = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        self._lay_prompts()

    def _lay_prompts(self) -> None:
        self.prompt_lengths = np.array([len(prompt) for prompt in self._prompts])
        unread = self.prompt_lengths - 1
        starts = np.cumsum([0, *unread])
        self.num_unread = int(starts[-1])
        parts = [p[:-1] for p in self._prompts] + [p[-1:] for p in self._prompts]
        self.prompt_ids = torch.from_numpy(np.concatenate(parts))
        position = np.concatenate([*map(np.arange, unread), unread])
        parent = np.arange(-1, len(position) - 1)
        parent[self.num_unread :] = starts[1:] - 1
        parent[position == 0] = -1
        self._prompt_parent, self._prompt_position = parent, position
        self._prompt_bounds = [starts, self.num_unread + np.arange(len(unread) + 1)]
        self.start()

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks to the given cells."""
        self._prompts = [self._prompts[cell] for cell in cells]
        self._lay_prompts()

    def start(self) -> _Span:
        """Forgets all but the prompts; returns them."""
        self._bounds = list(self._prompt_bounds)
        self._level = self._prompt_bounds[1][:-1]
        self._index(self._prompt_parent, self._prompt_position)
        return self.span(0)

    def add(self, parents: np.ndarray, cell: np.ndarray) -> _Span:
        """Adds a level, whose nodes follow the given nodes of the level before; returns it."""
        parent, position, count = self._level[parents], self.position.numpy(), len(self.position)
        self._bounds.append(count + np.searchsorted(cell, np.arange(len(self._prompts) + 1)))
        self._level = np.arange(count, count + len(parent))
        self._index(np.append(self.parent.numpy(), parent), np.append(position, position[parent] + 1))
        return self.span(len(self._bounds) - 1)

    def _index(self, parent: np.ndarray, position: np.ndarray) -> None:
        self.parent, self.position = torch.from_numpy(parent), torch.from_numpy(position)

    def span(self, first_chunk: int) -> _Span:
        """All rows from a chunk on: 0 for the prompts, 1 for what is read, 2 for the first level of answers."""
        bounds = np.stack(self._bounds[first_chunk:])
        return _Span(slice(int(bounds[0, 0]), len(self.position)), torch.from_numpy(bounds))


class _Linear:
    """A group of linear layers that read the same input, as one matmul, with their adapters."""

    def __init__(self, layers: dict[str, nn.Linear], library: Any) -> None:
        self._names, self._c = list(layers), library
        self.weight = torch.cat([m.weight.detach() for m in layers.values()])
        self.widths = [m.out_features for m in layers.values()]
        self.d_out, self.d_in = self.weight.shape

    def attach(self, adapters: AdapterPack, pack: kernels.Adapters) -> None:
        """Takes the places of these layers' adapters in the pack's current tensors."""
        self._pack = pack
        slots = [adapters.slots[name] for name in self._names]
        places = ([getattr(s, name) for s in slots] for name in ("d_out", "start_A", "start_B"))
        arrays = (kernels.PerLayer(*place) for place in places)
        self._group = kernels.Group(len(slots), self.d_in, self.d_out, *arrays)

    def forward(self, span: _Span, x: Tensor, low: Tensor, out: Tensor) -> None:
        """Writes base(x) + scale · B A x to out, and scale · A x to low for the backward pass; (rows, width) each."""
        torch.mm(x[span.rows], self.weight.T, out=out[span.rows])
        self._c.adapt(self._group, self._pack, len(span.bounds), span.bounds, x, low, out)

    def backward(
        self, span: _Span, x: Tensor, low: Tensor, grad_out: Tensor, grad_low: Tensor, grad_x: Tensor | None
    ) -> None:
        """Adds to the adapters' gradients; writes the gradient of x where it is wanted."""
        if grad_x is not None:
            torch.mm(grad_out[span.rows], self.weight, out=grad_x[span.rows])
        self._c.adapt_backward(
            self._group, self._pack, len(span.bounds), span.bounds, x, low, grad_out, grad_low, grad_x
        )


class _Norm:
    """Root-mean-square normalization of each row, or of several vectors in a row that have weights of their own.

    Args:
        weight: (vectors, d).
        epsilon: added to the mean square.
        library: the kernels.
    """

    def __init__(self, weight: Tensor, epsilon: float, library: Any) -> None:
        self.weight, self._epsilon, self._c = weight.detach().contiguous(), epsilon, library
        self.vectors, self.d = self.weight.shape

    @classmethod
    def read(cls, norm: Any, library: Any) -> "_Norm":
        """Of one of the model's own norms."""
        return cls(norm.weight[None], norm.variance_epsilon, library)

    def forward(self, span: _Span, x: Tensor, residual: Tensor | None, out: Tensor, inverse: Tensor) -> None:
        """Adds the residual to x in place; writes x normalized, times the weight, and its inverse root mean square."""
        x, out, inverse = (t[span.rows] for t in (x, out, inverse))
        residual = None if residual is None else residual[span.rows]
        self._c.norm(
            len(span) * self.vectors,
            self.d,
            self.vectors,
            self.weight,
            self._epsilon,
            x,
            x.shape[1],
            residual,
            out,
            out.shape[1],
            inverse,
        )

    def backward(self, span: _Span, x: Tensor, inverse: Tensor, grad_out: Tensor, grad_x: Tensor) -> None:
        """Adds the gradient of x to grad_x, or writes it in the place of grad_out where that is the same tensor."""
        x, inverse, grad_out, grad_x = (t[span.rows] for t in (x, inverse, grad_out, grad_x))
        self._c.norm_backward(
            len(span) * self.vectors,
            self.d,
            self.vectors,
            self.weight,
            x,
            inverse,
            grad_out,
            grad_x,
            grad_x.shape[1],
        )


class _Layer:
    """One decoder layer: attention and a gated MLP, each behind a norm, each added to its input."""

    def __init__(self, layer: Any, groups: list[dict[str, nn.Linear]], library: Any) -> None:
        self._c = library
        self.linears = [_Linear(group, library) for group in groups]
        self.qkv, self.o, self.gate_up, self.down = self.linears
        self.norm1, self.norm2 = (
            _Norm.read(norm, library) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        attention = layer.self_attn
        self.d_head: int = attention.head_dim
        self.num_q, self.num_kv = (width // self.d_head for width in self.qkv.widths[:2])
        self.scaling: float = attention.scaling
        self.norm_qk = self._join_norms(attention, library) if hasattr(attention, "q_norm") else None
        self.kept = _Buffers(self.qkv.weight.dtype)

    def _join_norms(self, attention: Any, library: Any) -> _Norm:
        """The norms of queries and keys as one, whose weight differs by head."""
        weights = [(attention.q_norm, self.num_q), (attention.k_norm, self.num_kv)]
        joined = torch.cat([norm.weight.expand(heads, -1) for norm, heads in weights])
        return _Norm(joined, attention.q_norm.variance_epsilon, library)

    def attach(self, adapters: AdapterPack, pack: kernels.Adapters) -> None:
        """Takes the pack's current adapters, and buffers of their rank."""
        for linear in self.linears:
            linear.attach(adapters, pack)
        low = (len(linear.widths) * adapters.rank for linear in self.linears)
        widths = dict(zip(("low_qkv", "low_o", "low_gate_up", "low_down"), low, strict=True))
        widths |= dict.fromkeys(("x", "n1", "middle", "n2"), self.norm1.d) | {"inverse1": 1, "inverse2": 1}
        widths |= {"qkv": self.qkv.d_out, "mixed": self.o.d_in, "log_sum": self.num_q}
        widths |= {"gate_up": self.gate_up.d_out, "gated": self.down.d_in}
        if self.norm_qk is not None:
            widths |= {"raw_qk": self.norm_qk.weight.numel(), "inverse_qk": self.norm_qk.vectors}
        self.kept = _Buffers(self.qkv.weight.dtype, **widths)

    def forward(self, fed: _Span, read: _Span, residual: Tensor | None, turn: "_Turn", out: Tensor) -> None:
        """Feeds rows: x + residual through the layer; the MLP's output goes to out, its own residual is kept.middle."""
        kept = self.kept
        self.norm1.forward(fed, kept.x, residual, kept.n1, kept.inverse1)
        self.qkv.forward(fed, kept.n1, kept.low_qkv, kept.qkv)
        if self.norm_qk is not None:
            kept.raw_qk[fed.rows] = kept.qkv[fed.rows, : kept.raw_qk.shape[1]]
            self.norm_qk.forward(fed, kept.raw_qk, None, kept.qkv, kept.inverse_qk)
        turn.rotate(fed, self.num_q + self.num_kv, self.d_head, kept.qkv)
        shape = self._shape_attention(turn)
        self._c.attend(shape, read.rows.start, read.rows.stop, turn.parent, kept.qkv, kept.log_sum, kept.mixed)
        self.o.forward(read, kept.mixed, kept.low_o, kept.middle)
        self.norm2.forward(read, kept.middle, kept.x, kept.n2, kept.inverse2)
        self.gate_up.forward(read, kept.n2, kept.low_gate_up, kept.gate_up)
        self._c.gate(len(read), self.down.d_in, kept.gate_up[read.rows], kept.gated[read.rows])
        self.down.forward(read, kept.gated, kept.low_down, out)

    def backward(self, fed: _Span, read: _Span, turn: "_Turn", grads: _Buffers, *, is_first: bool) -> None:
        """Turns grads.grad from the gradient of the output into that of the input; it is zero at rows not read."""
        kept, grad = self.kept, grads.grad
        self.down.backward(read, kept.gated, kept.low_down, grad, grads.low, grads.gated)
        self._c.gate_backward(len(read), self.down.d_in, grads.gated[read.rows], kept.gate_up[read.rows])
        self.gate_up.backward(read, kept.n2, kept.low_gate_up, kept.gate_up, grads.low, grads.normed)
        self.norm2.backward(read, kept.middle, kept.inverse2, grads.normed, grad)
        self.o.backward(read, kept.mixed, kept.low_o, grad, grads.low, grads.mixed)
        grads.qkv[fed.rows] = 0.0
        cells, chunks = read.bounds.shape[1] - 1, len(read.bounds)
        shape, slopes = self._shape_attention(turn), (grads.mixed, grads.qkv)
        self._c.attend_backward(shape, cells, chunks, read.bounds, turn.parent, kept.qkv, kept.log_sum, *slopes)
        turn.rotate(fed, self.num_q + self.num_kv, self.d_head, grads.qkv, back=True)
        if self.norm_qk is not None:
            self.norm_qk.backward(fed, kept.raw_qk, kept.inverse_qk, grads.qkv, grads.qkv)
        normed = None if is_first else grads.normed
        self.qkv.backward(fed, kept.n1, kept.low_qkv, grads.qkv, grads.low, normed)
        if not is_first:
            self.norm1.backward(fed, kept.x, kept.inverse1, grads.normed, grad)

    def _shape_attention(self, turn: "_Turn") -> kernels.Attention:
        return kernels.Attention(self.num_q, self.num_kv, self.d_head, turn.longest, self.scaling)


@dataclass(frozen=True)
class _Turn:
    """Where rows stand and what they follow, as attention needs it."""

    parent: Tensor
    position: Tensor
    longest: int
    cos: Tensor
    sin: Tensor
    library: Any

    def rotate(self, span: _Span, heads: int, d_head: int, x: Tensor, *, back: bool = False) -> None:
        """Turns the first heads of each row by its position, in place."""
        x, position, sign = x[span.rows], self.position[span.rows], -1.0 if back else 1.0
        self.library.rotate(len(span), heads, d_head, x.shape[1], position, self.cos, self.sin, sign, x)


class CompiledDecoderNetwork:
    """A Llama or Qwen3 decoder as the network of a pack, on a CPU.

    Args:
        model: a base model for which `decoder.is_supported` holds.
        prompts: token ids of each cell's prompt.
        adapters: of the same cells, laid out by `group_linears`.
        library: `load_kernels` of the model's dtype.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], adapters: AdapterPack, library: Any
    ) -> None:
        groups = group_linears(model)
        body: Any = model.get_submodule("model")
        self._adapters, self._c = adapters, library
        self._layers = [_Layer(layer, groups[4 * i : 4 * i + 4], library) for i, layer in enumerate(body.layers)]
        self._norm = _Norm.read(body.norm, library)
        self._embedding = body.embed_tokens.weight.detach()
        head: Any = model.get_output_embeddings()
        self._head = head.weight.detach()
        positions = torch.arange(model.config.max_position_embeddings)[None]
        self._cos, self._sin = (t[0].contiguous() for t in body.rotary_emb(self._embedding, positions))
        self._rows = _Rows(prompts)
        self._attached: Tensor | None = None
        self._leaves: list[Tensor] = []

    def keep(self, cells: np.ndarray) -> None:
        """See PackedNetwork.keep."""
        self._rows.keep(cells)

    def prefill(self) -> Tensor:
        """See PackedNetwork.prefill."""
        if self._attached is not self._adapters.parameters:
            # The pack has shrunk, or it is the first walk.
            self._attach()
        self._leaves = []
        fed = self._rows.start()
        return self._forward(self._rows.prompt_ids, fed, self._rows.span(1))

    def extend(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> Tensor:
        """See PackedNetwork.extend."""
        fed = self._rows.add(parents, cell)
        return self._forward(torch.from_numpy(tokens), fed, fed)

    def _attach(self) -> None:
        """Takes the addresses of the pack's current tensors, and makes buffers of their rank."""
        adapters, layer = self._adapters, self._layers[0]
        self._attached = adapters.parameters
        self._shared = (torch.from_numpy(adapters.ranks.astype(np.int64)), adapters.scale, adapters.gradient)
        ranks, scale, gradient = (t.data_ptr() for t in self._shared)
        shape = (adapters.num_cells, adapters.rank, adapters.parameters.shape[1])
        pack = kernels.Adapters(*shape, ranks, scale, adapters.parameters.data_ptr(), gradient)
        for each in self._layers:
            each.attach(adapters, pack)
        widths = {"grad": self._norm.d, "normed": self._norm.d, "mixed": layer.o.d_in, "gated": layer.down.d_in}
        widths |= {"qkv": layer.qkv.d_out, "low": 3 * adapters.rank}
        self._grads = _Buffers(self._head.dtype, **widths)
        self._kept = _Buffers(self._head.dtype, x=self._norm.d, final=self._norm.d, inverse=1)

    def _turn(self) -> _Turn:
        rows = self._rows
        return _Turn(rows.parent, rows.position, int(rows.position.max()) + 1, self._cos, self._sin, self._c)

    def _forward(self, ids: Tensor, fed: _Span, read: _Span) -> Tensor:
        """Feeds rows; returns the logits after those that are read."""
        kept, turn, last = self._kept, self._turn(), len(self._layers) - 1
        for buffers in (kept, *(layer.kept for layer in self._layers)):
            buffers.reserve(fed.rows.stop, used=fed.rows.start)
        torch.index_select(self._embedding, 0, ids, out=self._layers[0].kept.x[fed.rows])
        residual = None
        for index, layer in enumerate(self._layers):
            out = self._layers[index + 1].kept.x if index < last else kept.x
            layer.forward(fed, read if index == last else fed, residual, turn, out)
            residual = layer.kept.middle
        self._norm.forward(read, kept.x, residual, kept.final, kept.inverse)
        leaf = kept.final[read.rows].requires_grad_()
        self._leaves.append(leaf)
        return torch.matmul(leaf, self._head.T)

    def backpropagate(self, loss: Tensor) -> None:
        """See PackedNetwork.backpropagate."""
        loss.backward()
        fed, read, grads, turn = self._rows.span(0), self._rows.span(1), self._grads, self._turn()
        grads.reserve(len(fed), used=0)
        slopes = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        assert len(slopes) == len(self._leaves), "every level's logits are part of the loss"
        grads.grad[: read.rows.start] = 0.0
        torch.cat(slopes, out=grads.grad[read.rows])
        self._norm.backward(read, self._kept.x, self._kept.inverse, grads.grad, grads.grad)
        for index in reversed(range(len(self._layers))):
            whole = read if index == len(self._layers) - 1 else fed
            self._layers[index].backward(fed, whole, turn, grads, is_first=index == 0)
        self._leaves = []
