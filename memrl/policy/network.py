"""What a walk asks of the network of a pack: every prompt once, then the distinct answers level by level.

A cell's sequences are its prompts and the nodes of their answer trees; a node sees its prompt, its ancestors and
itself. So a prompt is computed once for all of its episodes, with gradient, and so is every beginning that answers
share.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.next_tokens import Head, NextTokens, NextTokensReader
from memrl.policy.token_tree import TokenTree


class PackedNetwork(ABC):
    """The policies of K cells: one base model, one adapter per cell, and one prompt per root of a cell's tree.

    Args:
        prompts: token ids of each root's prompt.
        root_cell: the cell of each root, ascending; int64 (roots,).
        adapters: one per cell.
        head: scores the last hidden states.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        root_cell: np.ndarray,
        adapters: AdapterPack,
        head: Head,
    ) -> None:
        self._adapters = adapters
        self._tree = TokenTree(prompts, root_cell, adapters.num_cells)
        self._reader = NextTokensReader(head)

    def plant(self, prompts: Sequence[Sequence[int] | np.ndarray], root_cell: np.ndarray, num_cells: int) -> None:
        """Puts other roots in the place of those there are, for the walks to come.

        Args:
            prompts: token ids of each root's prompt.
            root_cell: the cell of each root, ascending; a cell may be without; int64 (roots,).
            num_cells: cells there are now; the adapters shrink on their own.
        """
        self._tree.plant(prompts, root_cell, num_cells)

    def prefill(self) -> NextTokens:
        """Begins a walk: computes every prompt; returns what may follow each root."""
        self._start()
        self._tree.start()
        self._reader.start()
        return self._reader.read(self._feed(0))

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
        self._tree.add(tokens, parents, cell)
        return self._reader.read(self._feed(self._tree.num_chunks - 1))

    @abstractmethod
    def backpropagate(self, loss: Tensor) -> None:
        """Adds the gradient of a loss on what was picked from this walk to the adapters' gradient; ends the walk."""

    @abstractmethod
    def _start(self) -> None:
        """Takes up the adapters as they are, and forgets the walk before."""

    @abstractmethod
    def _feed(self, first_chunk: int) -> Tensor:
        """Computes the chunks from the first on; returns the last states of their rows, but for the unread ones."""
