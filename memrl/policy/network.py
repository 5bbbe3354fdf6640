"""What a walk asks of the network of a pack: every prompt once, then the distinct answers level by level.

A cell's sequences are its prompts and the nodes of their answer trees; a node sees its prompt, its ancestors and
itself. So a prompt is computed once for all of its episodes, with gradient, and so is every beginning that answers
share.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from memrl.policy.next_tokens import NextTokens


@runtime_checkable
class PackedNetwork(Protocol):
    """The policies of K cells: one base model, one adapter per cell, and one prompt per root of a cell's tree."""

    def plant(self, prompts: Sequence[Sequence[int] | np.ndarray], root_cell: np.ndarray) -> None:
        """Puts other roots in the place of those there are, for the walks to come.

        Args:
            prompts: token ids of each root's prompt.
            root_cell: the cell of each root, ascending; a cell may be without; int64 (roots,).
        """
        ...

    def prefill(self) -> NextTokens:
        """Begins a walk: computes every prompt; returns what may follow each root."""
        ...

    def extend(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> NextTokens:
        """Feeds one level of the tree.

        Args:
            tokens: token ids, int64 (nodes,).
            parents: the node of the level before that each follows, by its place in that level; at the first level
                the root, whose prompt it follows. int64 (nodes,).
            cell: the cell of each node, ascending; int64 (nodes,).

        Returns:
            what may follow each node.
        """
        ...

    def backpropagate(self, loss: Tensor) -> None:
        """Adds the gradient of a loss on what was picked from this walk to the adapters' gradient; ends the walk."""
        ...

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks the pack to the given cells (ascending) and their roots; the adapters shrink on their own."""
        ...
