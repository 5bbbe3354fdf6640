"""Counts the floating-point operations that an update needs, and those that padding adds.

What counts as needed: a prompt once per cell, a distinct beginning of an answer once per cell, the sampling pass as the
forward pass, no gradient of base weights, no backward pass of a cell without gradient (its episodes were all rewarded
alike), each adapter at its own rank. The last layer's queries, output projection and MLP count only where a token's
output is read (the prompt's last token and the nodes), and the first layer's input gradient is left out. A
multiplication and an addition are two operations. Norms, activations, softmax, Adam and everything else that is no
matrix multiplication do not count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy.autograd_network import AutogradNetwork
from memrl.policy.compiled_decoder import CompiledDecoderNetwork
from memrl.policy.next_tokens import NextTokens


@dataclass(frozen=True)
class Shape:
    """What of a decoder decides how many operations it needs.

    Attributes:
        layers: widths (d_in, d_out) of each linear layer by its last name, one dict a decoder layer.
        attention_width: heads times their width.
        hidden: width of the residual stream.
        vocabulary: tokens that the head scores.
    """

    layers: list[dict[str, tuple[int, int]]]
    attention_width: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Shape":
        """Reads the shape of a Llama-like model."""
        config: Any = model.config
        layers = []
        for index in range(config.num_hidden_layers):
            block = model.get_submodule(f"model.layers.{index}")
            linears = {n.rpartition(".")[2]: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
            layers.append({name: (m.in_features, m.out_features) for name, m in linears.items()})
        return cls(layers, layers[0]["q_proj"][1], config.hidden_size, config.vocab_size)

    @property
    def num_weights(self) -> int:
        """Weights of the linear layers, head left out."""
        return sum(d_in * d_out for layer in self.layers for d_in, d_out in layer.values())


@dataclass
class Fed:
    """What one walk fed to the network.

    Attributes:
        prompts: prompt tokens of each cell, int64 (cells,).
        levels: fed nodes of each cell, one int64 (cells,) a level.
        num_computed: tokens that were computed, padding included.
        has_gradient: whether a cell's gradient is other than zero, bool (cells,); unset: every cell's.
    """

    prompts: np.ndarray
    levels: list[np.ndarray] = field(default_factory=list)
    num_computed: int = 0
    has_gradient: np.ndarray | None = None

    @property
    def num_real(self) -> int:
        """Tokens that an update needs."""
        return int(self.prompts.sum() + sum(level.sum() for level in self.levels))


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one update, forward and backward, by what they serve."""

    base: float
    adapters: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.base + self.adapters + self.attention + self.head


_ALWAYS = ("k_proj", "v_proj")
"""Layers that the last decoder layer needs at every token: later tokens look at their output."""

_ATTENTION_INPUT = ("q_proj", "k_proj", "v_proj")


def count_operations(shape: Shape, fed: Fed, ranks: np.ndarray) -> Operations:
    """Counts what one update needs.

    Args:
        shape: of the base model.
        fed: what the walk fed.
        ranks: the adapter's rank of each cell, int64 (cells,).
    """
    nodes = sum(fed.levels, np.zeros_like(fed.prompts))
    everywhere, read = fed.prompts + nodes, 1 + nodes
    back = np.ones(len(nodes)) if fed.has_gradient is None else fed.has_gradient.astype(np.float64)
    base = adapters = 0.0
    for index, layer in enumerate(shape.layers):
        for name, (d_in, d_out) in layer.items():
            tokens = read if index == len(shape.layers) - 1 and name not in _ALWAYS else everywhere
            gives_gradient = not (index == 0 and name in _ATTENTION_INPUT)
            base += 2.0 * d_in * d_out * (tokens * (1 + gives_gradient * back)).sum()
            # forward: A x and B (A x); backward: the same two for the gradients of B and A, one to A x, one to x.
            backward = 2 * d_out + d_in + d_in * gives_gradient
            adapters += 2.0 * (tokens * ranks * (d_in + d_out + backward * back)).sum()
    # Two matrix products forward (scores, mixing), four backward; the last layer asks for fewer tokens' queries.
    seen_all, seen_read = _count_seen(fed)
    seen = (len(shape.layers) - 1) * seen_all + seen_read
    attention = 4.0 * shape.attention_width * (seen * (1 + 2 * back)).sum()
    head = 2.0 * shape.hidden * shape.vocabulary * (read * (1 + back)).sum()
    return Operations(float(base), float(adapters), float(attention), float(head))


def _count_seen(fed: Fed) -> tuple[np.ndarray, np.ndarray]:
    """Positions that a cell's tokens see, themselves included: of all tokens, and of those whose output is read."""
    below = sum((n * (fed.prompts + depth + 1) for depth, n in enumerate(fed.levels)), np.zeros_like(fed.prompts))
    return fed.prompts * (fed.prompts + 1) / 2 + below, fed.prompts + below


@contextmanager
def watch_walks() -> Iterator[list[Fed]]:
    """Notes what every walk inside the block feeds to its network; the list grows by one entry a walk."""
    walks: list[Fed] = []
    classes: list[Any] = [CompiledDecoderNetwork, AutogradNetwork]
    before = [(cls, cls.prefill, cls.extend, cls.backpropagate) for cls in classes]

    def watch(cls: Any, prefill: Any, extend: Any, backpropagate: Any) -> None:
        pads = cls is not CompiledDecoderNetwork

        def count_computed(sizes: np.ndarray) -> int:
            """Tokens that chunks of so many rows, (chunks, cells), cost."""
            return int(sizes.max(1).sum()) * sizes.shape[1] if pads else int(sizes.sum())

        def prefill_watched(self: Any) -> NextTokens:
            next_tokens, sizes = prefill(self), np.diff(self._tree.bounds())
            # None has a gradient unless one is computed: the learner leaves the backward pass out where all are zero.
            walks.append(Fed(sizes.sum(0), [], count_computed(sizes), np.zeros(sizes.shape[1], dtype=bool)))
            return next_tokens

        def extend_watched(self: Any, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> NextTokens:
            walk, nodes = walks[-1], np.bincount(cell, minlength=len(walks[-1].prompts))
            walk.levels.append(nodes)
            walk.num_computed += count_computed(nodes[None])
            return extend(self, tokens, parents, cell)

        def backpropagate_watched(self: Any, loss: Tensor) -> None:
            backpropagate(self, loss)
            walks[-1].has_gradient = (self._adapters.gradient != 0).any(1).cpu().numpy()

        cls.prefill, cls.extend, cls.backpropagate = prefill_watched, extend_watched, backpropagate_watched

    for methods in before:
        watch(*methods)
    try:
        yield walks
    finally:
        for cls, prefill, extend, backpropagate in before:
            cls.prefill, cls.extend, cls.backpropagate = prefill, extend, backpropagate
