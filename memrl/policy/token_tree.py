"""Prompts and the answer trees that follow them, as rows of tokens, and the same rows padded into one batch.

A row is one token: of a prompt, or a node of an answer tree. It sees the row that it follows, that row's ancestors and
itself, and its position is their number. So a prompt is computed once for all of its answers, and so is every
beginning that answers share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PaddedRows:
    """Rows as one batch of sequences, one per cell.

    Attributes:
        token: token ids, 0 at padding; int64 (cells, width).
        position: tokens before each; int64 (cells, width).
        mask: 0 where a position sees a column, else -inf; float32 (cells, 1, width, columns so far).
        cell: the sequence of each row of the batch, int64 (rows,).
        place: where in it the row stands, 0 .. width - 1; int64 (rows,).
    """

    token: np.ndarray
    position: np.ndarray
    mask: np.ndarray
    cell: np.ndarray
    place: np.ndarray


def pad_rows(
    token: np.ndarray, parent: np.ndarray, position: np.ndarray, bounds: np.ndarray, first_chunk: int = 0
) -> PaddedRows:
    """Lays rows out as a batch; each chunk is padded to the cell that has the most rows in it.

    Args:
        token: token ids of the rows of the batch, int64 (rows of these chunks,).
        parent: the row that each row follows, -1 at a prompt's first token; int64 (rows,).
        position: int64 (rows,).
        bounds: where the rows of each chunk and cell begin, and where the last ends; int64 (chunks, cells + 1).
        first_chunk: the batch begins here; rows before it are columns that it may see.
    """
    sizes = np.diff(bounds)
    widths = sizes.max(axis=1)
    offset = np.cumsum([0, *widths])
    cell = np.tile(np.arange(sizes.shape[1]), len(sizes)).repeat(sizes.ravel())
    column = np.arange(len(parent)) + (offset[:-1, None] - bounds[:, :-1]).ravel().repeat(sizes.ravel())
    first, start, end = int(bounds[first_chunk, 0]), int(offset[first_chunk]), int(offset[-1])
    own, place = cell[first:], column[first:] - start
    padded = np.zeros((2, sizes.shape[1], end - start), dtype=np.int64)
    padded[:, own, place] = token, position[first:]
    mask = np.full((sizes.shape[1], 1, end - start, end), -np.inf, dtype=np.float32)
    # A padded position sees itself: attention over nothing would be NaN.
    mask[:, :, range(end - start), range(start, end)] = 0.0
    row, seen = np.arange(len(own)), parent[first:]
    while len(row := row[seen >= 0]):
        seen = seen[seen >= 0]
        mask[own[row], 0, place[row], column[seen]] = 0.0
        seen = parent[seen]
    return PaddedRows(padded[0], padded[1], mask, own, place)


class TokenTree:
    """A pack's prompts, and the levels of their answer trees as a walk adds them.

    Rows lie chunk by chunk: the prompts' tokens but the last, their last tokens, then each level; by cell within a
    chunk.

    Args:
        prompts: token ids of each root's prompt.
        root_cell: the cell of each root, ascending; a cell may be without; int64 (roots,).
        num_cells: cells that may have roots here.

    Attributes:
        parent: the row that each row follows, -1 at a prompt's first token; int64 (rows,).
        position: tokens before each row; int64 (rows,).
        num_unread: rows whose output nobody reads, the first ones: the prompts' tokens but the last.
    """

    def __init__(self, prompts: Sequence[Sequence[int] | np.ndarray], root_cell: np.ndarray, num_cells: int) -> None:
        self.plant(prompts, root_cell, num_cells)

    def plant(self, prompts: Sequence[Sequence[int] | np.ndarray], root_cell: np.ndarray, num_cells: int) -> None:
        """Puts other roots in the place of those there are; see `PackedNetwork.plant`."""
        self._num_cells = num_cells
        unread = np.array([len(prompt) - 1 for prompt in prompts])
        starts = np.cumsum([0, *unread])
        self.num_unread = int(starts[-1])
        given = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        tokens = [np.concatenate([p[:-1] for p in given]), np.concatenate([p[-1:] for p in given])]
        position = np.concatenate([*map(np.arange, unread), unread])
        parent = np.arange(-1, len(position) - 1)
        parent[self.num_unread :] = starts[1:] - 1
        parent[position == 0] = -1
        first_root = np.searchsorted(root_cell, np.arange(num_cells + 1))
        self._of_prompts = tokens, parent, position, [starts[first_root], self.num_unread + first_root]
        self.start()

    @property
    def num_chunks(self) -> int:
        """Chunks so far: two of the prompts, and one per level."""
        return len(self._bounds)

    def start(self) -> None:
        """Forgets all but the prompts."""
        tokens, self.parent, self.position, bounds = self._of_prompts
        self._tokens, self._bounds = list(tokens), list(bounds)

    def add(self, tokens: np.ndarray, parents: np.ndarray, cell: np.ndarray) -> None:
        """Adds a level; the arguments are those of `PackedNetwork.extend`."""
        parent, count = self._bounds[-1][0] + parents, len(self.parent)
        self._tokens.append(tokens)
        self._bounds.append(count + np.searchsorted(cell, np.arange(self._num_cells + 1)))
        self.parent = np.concatenate([self.parent, parent])
        self.position = np.concatenate([self.position, self.position[parent] + 1])

    def tokens(self, first_chunk: int) -> np.ndarray:
        """Token ids of the rows from a chunk on, int64 (rows,)."""
        return np.concatenate(self._tokens[first_chunk:])

    def bounds(self, first_chunk: int = 0) -> np.ndarray:
        """Where the rows of each cell begin, and where the last ends, from a chunk on: int64 (chunks, cells + 1)."""
        return np.array(self._bounds[first_chunk:])

    def pad(self, first_chunk: int) -> PaddedRows:
        """The rows from a chunk on as one batch."""
        return pad_rows(self.tokens(first_chunk), self.parent, self.position, self.bounds(), first_chunk)
