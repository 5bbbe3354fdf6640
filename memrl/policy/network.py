"""The network of a pack: every prompt once, then the distinct answers as a tree.

The batch axis is the cells. A cell's sequence is its prompt, then every node of its answer tree in the order they
are fed; a node sees the prompt, its ancestors and itself. So a prompt is computed once for all
episodes of a cell, with gradient, and so is every beginning that answers share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class PackedNetwork(Protocol):
    """The policies of K cells: one base model, one adapter a cell."""

    def prefill(self) -> Tensor:
        """Begins a walk: computes every prompt; returns the logits after each, (cells, vocabulary)."""
        ...

    def extend(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> Tensor:
        """Feeds one level of the tree.

        Args:
            tokens: token ids, int64 (nodes,).
            parents: the node of the level before that each follows, by its place in that level; at the first level
                the cell, whose prompt it follows. int64 (nodes,).
            cell: the cell of each node, ascending; int64 (nodes,).

        Returns:
            logits after each node, (nodes, vocabulary).
        """
        ...

    def backpropagate(self, loss: Tensor) -> None:
        """Adds the gradient of a loss on the logits of this walk to the adapters' gradient; ends the walk."""
        ...

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks the pack to the given cells; the adapters shrink on their own."""
        ...


class PaddedTree:
    """A pack's prompts and levels as tensors of one width a cell: which positions see which, and where they stand.

    Prompts of unlike length are padded on the left, so that each ends at the same place; levels on the right.

    Args:
        prompts: token ids of each cell's prompt.
        device: where the tensors live.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self._device = device
        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        real = torch.zeros((len(prompts), longest), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            real[row, longest - len(prompt) :] = True
        self._ids, self._real = ids.to(device), real.to(device)
        self._begin()

    def _begin(self) -> None:
        self._visible, self._depth = self._real[:, None, :], 0
        self._slot = np.zeros(len(self._real), dtype=np.int64)

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks to the given cells, and drops padding that none of them needs."""
        index = torch.from_numpy(np.asarray(cells)).to(self._device)
        real = self._real[index]
        unused = int((~real.any(0)).sum())
        self._ids, self._real = self._ids[index, unused:], real[:, unused:]

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts: token ids (cells, length), visible (cells, length, length), positions (cells, length)."""
        self._begin()
        length = self._ids.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool, device=self._device).tril()
        visible = (causal & self._real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=self._device)
        return self._ids, visible, (self._real.cumsum(1) - 1).clamp(min=0)

    def grow(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> "PaddedLevel":
        """One more level; the arguments are those of `PackedNetwork.extend`."""
        before, self._slot = self._slot, np.arange(len(cell)) - np.searchsorted(cell, cell)
        cells, nodes = len(self._ids), int(self._slot.max()) + 1
        padded = np.zeros((2, cells, nodes), dtype=np.int64)
        padded[:, cell, self._slot] = tokens, before[parents]
        ids, follows = torch.from_numpy(padded).to(self._device)
        seen = self._visible.gather(1, follows[:, :, None].expand(-1, -1, self._visible.shape[2]))
        itself = torch.eye(nodes, dtype=torch.bool, device=self._device).expand(cells, nodes, nodes)
        self._visible = torch.cat([seen, itself], dim=2)
        positions = (self._real.sum(1) + self._depth)[:, None].expand(cells, nodes)
        self._depth += 1
        where = (torch.from_numpy(a).to(self._device) for a in (cell, self._slot))
        return PaddedLevel(ids, self._visible, positions, *where)


@dataclass(frozen=True)
class PaddedLevel:
    """One level of a padded tree.

    Attributes:
        ids: token ids, (cells, nodes).
        visible: (cells, nodes, positions so far and these).
        positions: (cells, nodes).
        cell: the cell of each real node, (real nodes,).
        slot: its place among the cell's nodes, (real nodes,).
    """

    ids: Tensor
    visible: Tensor
    positions: Tensor
    cell: Tensor
    slot: Tensor
