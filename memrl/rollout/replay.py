"""Episodes sampled elsewhere, walked down the answer tries as if they were drawn here."""

from collections.abc import Sequence

import numpy as np

from memrl.policy.trie_walk import Forest, Level, Walk
from memrl.rollout.backend import SampledEpisodes


class Replay:
    """Splits given episodes over the tries; an episode is cut at its first token that no answer has.

    Args:
        forest: the pack's tries.
        episodes: of each cell, in the order of the pack; consecutive ones make a group.
        num_groups: groups of each cell, int64 (cells,).
    """

    def __init__(self, forest: Forest, episodes: Sequence[SampledEpisodes], num_groups: np.ndarray) -> None:
        self._forest = forest
        sizes = [len(e.tokens) for e in episodes]
        longest = max(e.tokens.shape[1] for e in episodes)
        self.cell = np.repeat(np.arange(len(episodes)), sizes)
        self.tokens = np.concatenate([_widen(e.tokens, longest, -1) for e in episodes])
        self.rollout_logprobs = np.concatenate([_widen(e.rollout_logprobs, longest, 0.0) for e in episodes])
        groups = [np.arange(size) * int(n) // max(size, 1) for size, n in zip(sizes, num_groups, strict=True)]
        self._group = np.concatenate(groups)
        self._node = forest.root[self.cell]
        self._left: dict[int, list[np.ndarray]] = {}

    def split(self, level: Level, legal: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        """Counts the given episodes by token at each node; see `Splitter.split`."""
        forest, symbols = self._forest, len(self._forest.alphabet)
        active = np.nonzero(self._node >= 0)[0]
        token = self.tokens[active, level.depth] if level.depth < self.tokens.shape[1] else np.full(len(active), -1)
        symbol = np.minimum(np.searchsorted(forest.alphabet, token), symbols - 1)
        child = np.where(forest.alphabet[symbol] == token, forest.child[self._node[active], symbol], -1)
        row = self._find_rows(level, active)
        counts = np.zeros((len(level.cell), level.counts.shape[1], symbols + 1), dtype=np.int64)
        group = self._group[active]
        np.add.at(counts, (row, group, np.where(child >= 0, symbol, symbols)), 1)
        gone = np.nonzero(child < 0)[0]
        for i in gone[np.lexsort((group[gone], row[gone]))]:
            self._left.setdefault(int(self.cell[active[i]]), []).append(token[i])
        self._node[active] = np.where((child >= 0) & (forest.answer[child] < 0), child, -1)
        return counts

    def pick_illegal(self, cell: int, probabilities: np.ndarray, count: int) -> np.ndarray:
        """The tokens by which the given episodes left the trie; see `Splitter.pick_illegal`."""
        tokens, self._left[cell] = self._left[cell][:count], self._left[cell][count:]
        return np.array(tokens)

    def average_on_edges(self, walk: Walk) -> np.ndarray:
        """The sampler's own log-probability of each edge of the walk, averaged over the episodes through it.

        Returns:
            float64 (edges,), nats; NaN at edges that no episode took.
        """
        depth = walk.outcome_tokens.shape[1]
        ends = {
            (int(c), tuple(t[t >= 0])): i
            for i, (c, t) in enumerate(zip(walk.outcome_cell, walk.outcome_tokens, strict=True))
        }
        total, count = np.zeros((2, len(walk.edge_cell)))
        for cell, tokens, logprobs in zip(self.cell, self.tokens, self.rollout_logprobs, strict=True):
            written = tokens[tokens >= 0][:depth]
            outcome = next(
                ends[key] for n in range(1, len(written) + 1) if (key := (int(cell), tuple(written[:n]))) in ends
            )
            edges = walk.outcome_path[outcome]
            edges = edges[edges >= 0]
            total[edges] += logprobs[: len(edges)]
            count[edges] += 1
        with np.errstate(invalid="ignore"):
            return total / count

    def _find_rows(self, level: Level, active: np.ndarray) -> np.ndarray:
        key = level.cell * len(self._forest.answer) + level.node
        order = np.argsort(key)
        wanted = self.cell[active] * len(self._forest.answer) + self._node[active]
        return order[np.searchsorted(key[order], wanted)]


def _widen(array: np.ndarray, width: int, fill: float) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)
