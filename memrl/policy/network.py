"""The network of a pack: every prompt once, then the distinct answers as a tree.

The batch axis is the cells. A cell's sequence is its prompt, then every node of its answer tree in the order they
are fed; a node sees the prompt, its ancestors and itself. So a prompt is computed once for all
episodes of a cell, with gradient, and so is every beginning that answers share.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class PackedNetwork(Protocol):
    """The policies of K cells: one base model, one adapter a cell."""

    def prefill(self) -> Tensor:
        """Begins a walk: computes every prompt; returns the logits after each, (cells, vocabulary)."""
        ...

    def extend(self, tokens: Tensor, parents: Tensor, cell: Tensor, slot: Tensor) -> Tensor:
        """Feeds one level of the tree.

        Args:
            tokens: token ids, (cells, nodes); padded to the widest cell with any token.
            parents: slot of each node's parent in the level before, 0 at the first level; (cells, nodes).
            cell: the cell of each real node, (rows,).
            slot: its place among the cell's nodes, (rows,).

        Returns:
            logits after each real node, (rows, vocabulary), in the order of `cell` and `slot`.
        """
        ...

    def backpropagate(self, loss: Tensor) -> None:
        """Adds the gradient of a loss on the logits of this walk to the adapters' gradient; ends the walk."""
        ...

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks the pack to the given cells; the adapters shrink on their own."""
        ...


class PromptTree:
    """Which positions see which, and where they stand; the bookkeeping that every network shares.

    Prompts of unlike length are padded on the left, so that each ends at the same place.

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
        self._visible = self._real[:, None, :]
        self._depth = 0

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks to the given cells, and drops padding that none of them needs."""
        index = torch.from_numpy(np.asarray(cells)).to(self._device)
        real = self._real[index]
        unused = int((~real.any(0)).sum())
        self._ids, self._real = self._ids[index, unused:], real[:, unused:]

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts: token ids (cells, length), visible (cells, length, length), positions (cells, length)."""
        length = self._ids.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool, device=self._device).tril()
        visible = (causal & self._real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=self._device)
        self._visible, self._depth = self._real[:, None, :], 0
        return self._ids, visible, (self._real.cumsum(1) - 1).clamp(min=0)

    def grow(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """One more level: visible (cells, nodes, positions so far and these), positions (cells, nodes)."""
        cells, nodes = parents.shape
        seen = self._visible.gather(1, parents[:, :, None].expand(-1, -1, self._visible.shape[2]))
        itself = torch.eye(nodes, dtype=torch.bool, device=self._device).expand(cells, nodes, nodes)
        self._visible = torch.cat([seen, itself], dim=2)
        positions = (self._real.sum(1) + self._depth)[:, None].expand(cells, nodes)
        self._depth += 1
        return self._visible, positions
