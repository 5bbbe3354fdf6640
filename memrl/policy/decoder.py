"""Llama and Qwen3 decoders as the network of a pack, with a backward pass of our own.

Sampling needs one pass a level, but once the answers are known nothing keeps the levels apart: the backward pass
runs once over the whole tree. The base weights are frozen, so it computes no gradient of theirs. Queries, keys and
values share one matmul, as do gate and up, and so do their adapters' A.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from memrl.policy.adapter_pack import AdapterPack, Slot
from memrl.policy.network import PaddedTree


def is_supported(model: PreTrainedModel) -> bool:
    """Whether the model is a Llama or Qwen3 decoder without biases or sliding windows, in float32 or float64."""
    config: Any = model.config
    return (
        type(model) in (LlamaForCausalLM, Qwen3ForCausalLM)
        and not any(name.endswith(".bias") for name, _ in model.named_parameters())
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and model.dtype in (torch.float32, torch.float64)
    )


def group_linears(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """A supported model's linear layers, in groups that read the same input: q k v, o, gate up, down of each layer."""
    groups = []
    parts = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
    for index in range(model.config.num_hidden_layers):
        for part in parts:
            names = [f"model.layers.{index}.{name}" for name in part]
            groups.append({name: model.get_submodule(name) for name in names})
    return groups


class _Linear:
    """A group of linear layers that read the same input, as one matmul, with their adapters."""

    def __init__(self, layers: dict[str, nn.Linear]) -> None:
        self.names = list(layers)
        self.weight = torch.cat([m.weight.detach() for m in layers.values()])
        self.widths = [m.out_features for m in layers.values()]

    def attach(self, adapters: AdapterPack) -> None:
        """Takes views of the pack's current tensors."""
        slots: list[Slot] = [adapters.slots[name] for name in self.names]
        self.ranks, self.scale = [adapters.rank] * len(slots), adapters.scale
        self.A, self.grad_A = (
            adapters.view_A(f, slots[0], len(slots)) for f in (adapters.parameters, adapters.gradient)
        )
        self.B = [adapters.view_B(adapters.parameters, s) for s in slots]
        self.grad_B = [adapters.view_B(adapters.gradient, s) for s in slots]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns base(x) + scale · B A x, (cells, tokens, d_out), and scale · A x for the backward pass."""
        out = torch.matmul(x, self.weight.T)
        low = torch.bmm(x, self.A.transpose(1, 2)).mul_(self.scale)
        for part, part_low, B in zip(
            out.split_with_sizes(self.widths, 2), low.split_with_sizes(self.ranks, 2), self.B, strict=True
        ):
            # In place on these strided views, baddbmm_ would fall back to one call a cell.
            part.add_(torch.bmm(part_low, B))
        return out, low

    def backward(self, grad_out: Tensor, x: Tensor, low: Tensor, *, needs_input_grad: bool = True) -> Tensor:
        """Adds to the adapters' gradients; returns the gradient of x."""
        grad_low = torch.empty_like(low)
        parts = zip(
            grad_out.split_with_sizes(self.widths, 2),
            low.split_with_sizes(self.ranks, 2),
            grad_low.split_with_sizes(self.ranks, 2),
            self.B,
            self.grad_B,
            strict=True,
        )
        for part, part_low, part_grad_low, B, grad_B in parts:
            torch.mul(torch.bmm(part, B.transpose(1, 2)), self.scale, out=part_grad_low)
            grad_B.add_(torch.bmm(part_low.transpose(1, 2), part))
        self.grad_A.add_(torch.bmm(grad_low.transpose(1, 2), x))
        if not needs_input_grad:
            return grad_low
        return torch.matmul(grad_out, self.weight).baddbmm_(grad_low, self.A)


class _Norm:
    """Root-mean-square normalization over the last axis.

    Source: Zhang and Sennrich, 2019, arXiv 1910.07467, equation 4.
    """

    def __init__(self, norm: Any) -> None:
        self.weight = norm.weight.detach()
        self._epsilon = torch.tensor(norm.variance_epsilon, dtype=self.weight.dtype, device=self.weight.device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the normalized x times the weight, and the inverse root mean square."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.addcmul(self._epsilon, length, length, value=1.0 / x.shape[-1]).rsqrt_()
        return (x * inverse).mul_(self.weight), inverse

    def backward(self, grad_out: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """The gradient of x."""
        weighted = grad_out * self.weight
        along = torch.linalg.vecdot(weighted, x)[..., None].mul_(inverse).mul_(inverse)
        return weighted.addcmul_(x, along, value=-1.0 / x.shape[-1]).mul_(inverse)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns (cells, tokens, heads, d_head) by position. Source: Su et al., 2021, arXiv 2104.09864, equation 34."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos).addcmul_(turned, sin)


@dataclass
class _Saved:
    """Activations of one layer, one tensor a chunk (the prompt, then each level)."""

    chunks: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, **tensors: Tensor) -> None:
        """Keeps one more chunk of each."""
        for name, tensor in tensors.items():
            self.chunks.setdefault(name, []).append(tensor)

    def cat(self, name: str) -> Tensor:
        """All chunks so far as one; they stay so joined."""
        pieces = self.chunks[name]
        if len(pieces) > 1:
            self.chunks[name] = pieces = [torch.cat(pieces, dim=1)]
        return pieces[0]


class _Layer:
    """One decoder layer: attention and a gated MLP, each behind a norm, each added to its input."""

    def __init__(self, model: PreTrainedModel, index: int, groups: list[dict[str, nn.Linear]]) -> None:
        layer: Any = model.get_submodule(f"model.layers.{index}")
        self.qkv, self.o, self.gate_up, self.down = (_Linear(g) for g in groups)
        self.norm1, self.norm2 = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.d_head: int = layer.self_attn.head_dim
        self.num_q, self.num_kv = (width // self.d_head for width in self.qkv.widths[:2])
        self.norm_qk = self._join_norms(layer.self_attn) if hasattr(layer.self_attn, "q_norm") else None
        self.scaling: float = layer.self_attn.scaling
        self.saved = _Saved()

    def _join_norms(self, attention: Any) -> _Norm:
        """The norms of queries and keys as one, whose weight differs by head."""
        norm = _Norm(attention.q_norm)
        weights = [(attention.q_norm, self.num_q), (attention.k_norm, self.num_kv)]
        norm.weight = torch.cat([n.weight.detach().expand(heads, -1) for n, heads in weights])
        return norm

    @property
    def linears(self) -> list[_Linear]:
        return [self.qkv, self.o, self.gate_up, self.down]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Feeds one chunk, (cells, tokens, d); mask is (cells, 1, tokens, positions so far and these)."""
        save = self.saved
        n1, inverse1 = self.norm1.forward(x)
        qkv, low_qkv = self.qkv.forward(n1)
        qk, v = qkv.unflatten(2, (-1, self.d_head)).split_with_sizes([self.num_q + self.num_kv, self.num_kv], dim=2)
        save.add(x=x, n1=n1, inverse1=inverse1, low_qkv=low_qkv, v=v)
        if self.norm_qk is not None:
            save.add(raw_qk=qk)
            qk, inverse_qk = self.norm_qk.forward(qk)
            save.add(inverse_qk=inverse_qk)
        qk = _rotate(qk, cos, sin)
        save.add(qk=qk)
        heads = F.scaled_dot_product_attention(
            qk[:, :, : self.num_q].transpose(1, 2),
            save.cat("qk")[:, :, self.num_q :].transpose(1, 2),
            save.cat("v").transpose(1, 2),
            attn_mask=mask,
            scale=self.scaling,
            enable_gqa=self.num_q != self.num_kv,
        )
        mixed = heads.transpose(1, 2).flatten(2)
        out, low_o = self.o.forward(mixed)
        middle = out.add_(x)
        n2, inverse2 = self.norm2.forward(middle)
        gate_up, low_gate_up = self.gate_up.forward(n2)
        gate, up = gate_up.split_with_sizes(self.gate_up.widths, 2)
        gated = F.silu(gate).mul_(up)
        out, low_down = self.down.forward(gated)
        save.add(mixed=mixed, low_o=low_o, middle=middle, n2=n2, inverse2=inverse2)
        save.add(gate_up=gate_up, low_gate_up=low_gate_up, gated=gated, low_down=low_down)
        return out.add_(middle)

    def backward(self, grad: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *, is_first: bool) -> Tensor:
        """Runs back over all chunks at once: grad of the output to grad of the input, (cells, all tokens, d)."""
        save = self.saved
        grad_gated = self.down.backward(grad, save.cat("gated"), save.cat("low_down"))
        grad_n2 = self.gate_up.backward(self._backward_gate(grad_gated), save.cat("n2"), save.cat("low_gate_up"))
        grad = self.norm2.backward(grad_n2, save.cat("middle"), save.cat("inverse2")).add_(grad)
        grad_mixed = self.o.backward(grad, save.cat("mixed"), save.cat("low_o"))
        grad_qkv = self._backward_attention(grad_mixed, cos, sin, mask)
        grad_n1 = self.qkv.backward(grad_qkv, save.cat("n1"), save.cat("low_qkv"), needs_input_grad=not is_first)
        self.saved = _Saved()
        if is_first:
            return grad
        return self.norm1.backward(grad_n1, save.cat("x"), save.cat("inverse1")).add_(grad)

    def _backward_gate(self, grad_gated: Tensor) -> Tensor:
        gate, up = self.saved.cat("gate_up").split_with_sizes(self.gate_up.widths, 2)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        out = torch.empty_like(self.saved.cat("gate_up"))
        grad_gate, grad_up = out.split_with_sizes(self.gate_up.widths, 2)
        torch.mul(grad_gated, silu, out=grad_up)
        slope = (1.0 + gate).sub_(silu).mul_(sigmoid)
        torch.mul(grad_gated.mul_(up), slope, out=grad_gate)
        return out

    def _backward_attention(self, grad_mixed: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        save = self.saved
        q, k = save.cat("qk").transpose(1, 2).split_with_sizes([self.num_q, self.num_kv], dim=1)
        v = save.cat("v").transpose(1, 2)
        repeats = self.num_q // self.num_kv
        if repeats > 1:
            k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        grad_heads = grad_mixed.unflatten(2, (-1, self.d_head)).transpose(1, 2)
        weights = torch.softmax(torch.matmul(q * self.scaling, k.transpose(2, 3)).add_(mask), dim=-1)
        grad_v = torch.matmul(weights.transpose(2, 3), grad_heads)
        grad_weights = torch.matmul(grad_heads, v.transpose(2, 3)).mul_(weights)
        grad_scores = grad_weights.addcmul_(weights, grad_weights.sum(-1, keepdim=True), value=-1.0).mul_(self.scaling)
        grad_q = torch.matmul(grad_scores, k)
        grad_k = torch.matmul(grad_scores.transpose(2, 3), q)
        if repeats > 1:
            grad_k, grad_v = (t.unflatten(1, (-1, repeats)).sum(2) for t in (grad_k, grad_v))
        grad_qk = _rotate(torch.cat([grad_q, grad_k], dim=1).transpose(1, 2), cos, -sin)
        if self.norm_qk is not None:
            grad_qk = self.norm_qk.backward(grad_qk, save.cat("raw_qk"), save.cat("inverse_qk"))
        return torch.cat([grad_qk, grad_v.transpose(1, 2)], dim=2).flatten(2)


class DecoderNetwork:
    """A Llama or Qwen3 decoder as the network of a pack.

    Args:
        model: a base model for which `is_supported` holds.
        prompts: token ids of each cell's prompt.
        adapters: of the same cells, laid out by `group_linears`.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], adapters: AdapterPack) -> None:
        groups = group_linears(model)
        body: Any = model.get_submodule("model")
        self._adapters = adapters
        self._layers = [_Layer(model, i, groups[4 * i : 4 * i + 4]) for i in range(model.config.num_hidden_layers)]
        self._norm = _Norm(body.norm)
        self._embedding = body.embed_tokens.weight.detach()
        head: Any = model.get_output_embeddings()
        self._head = head.weight.detach()
        self._tree = PaddedTree(prompts, model.device)
        positions = torch.arange(model.config.max_position_embeddings, device=model.device)[None]
        self._cos, self._sin = (t[0] for t in body.rotary_emb(self._embedding, positions))
        self._attached: Tensor | None = None
        self._begin()

    def _begin(self) -> None:
        for layer in self._layers:
            layer.saved = _Saved()
        self._saved = _Saved()
        self._masks: list[Tensor] = []
        self._leaves: list[tuple[Tensor, Tensor, Tensor]] = []

    def prefill(self) -> Tensor:
        """See PackedNetwork.prefill."""
        self._begin()
        if self._attached is not self._adapters.parameters:
            # The pack has shrunk, or it is the first walk.
            self._attached = self._adapters.parameters
            for layer in self._layers:
                for linear in layer.linears:
                    linear.attach(self._adapters)
        ids, visible, positions = self._tree.start()
        cell = torch.arange(len(ids), device=ids.device)
        return self._forward(ids, visible, positions, cell, torch.full_like(cell, ids.shape[1] - 1))

    def extend(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> Tensor:
        """See PackedNetwork.extend."""
        level = self._tree.grow(tokens, parents, cell)
        return self._forward(level.ids, level.visible, level.positions, level.cell, level.slot)

    def keep(self, cells: np.ndarray) -> None:
        """See PackedNetwork.keep."""
        self._tree.keep(cells)

    def _forward(self, ids: Tensor, visible: Tensor, positions: Tensor, cell: Tensor, slot: Tensor) -> Tensor:
        with torch.no_grad():
            x = self._embedding[ids]
            cos, sin = (t[positions][:, :, None, :] for t in (self._cos, self._sin))
            mask = torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill_(~visible, -torch.inf)[
                :, None
            ]
            for layer in self._layers:
                x = layer.forward(x, cos, sin, mask)
            final, inverse = self._norm.forward(x)
        self._saved.add(x=x, inverse=inverse, cos=cos, sin=sin)
        self._masks.append(mask)
        leaf = final[cell, slot].requires_grad_()
        self._leaves.append((leaf, cell, slot))
        return torch.matmul(leaf, self._head.T)

    def backpropagate(self, loss: Tensor) -> None:
        """See PackedNetwork.backpropagate."""
        loss.backward()
        with torch.no_grad():
            x, saved = self._saved.cat("x"), self._saved
            grad = torch.zeros_like(x)
            start, length = 0, x.shape[1]
            for (leaf, cell, slot), mask in zip(self._leaves, self._masks, strict=True):
                assert leaf.grad is not None, "every level's logits are part of the loss"
                grad[cell, start + slot] = leaf.grad
                start += mask.shape[2]
            mask = torch.cat([F.pad(m, (0, length - m.shape[3]), value=-torch.inf) for m in self._masks], dim=2)
            grad = self._norm.backward(grad, x, saved.cat("inverse"))
            for index in reversed(range(len(self._layers))):
                layer = self._layers[index]
                grad = layer.backward(grad, saved.cat("cos"), saved.cat("sin"), mask, is_first=index == 0)
        self._begin()
