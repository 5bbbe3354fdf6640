"""Episodes sampled elsewhere, walked down the answers as if they were drawn here."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from memrl.policy.forest import Forest
from memrl.policy.trie_walk import Level, Walk
from memrl.rollout.backend import SampledEpisodes


class Replay:
    """Splits given episodes over the answers; an episode is cut at its first token that no answer has.

    Args:
        forest: the pack's roots.
        episodes: of each root, in the order of the forest; consecutive ones make a group.
        num_groups: groups of each root.
    """

    def __init__(
        self, forest: Forest, episodes: Sequence[SampledEpisodes], num_groups: Int[np.ndarray, "root"]
    ) -> None:
        self._states = forest.states
        sizes = [len(e.tokens) for e in episodes]
        longest = max(e.tokens.shape[1] for e in episodes)
        self._root = np.repeat(np.arange(len(episodes)), sizes)
        self._cell = forest.root_cell[self._root]
        self._tokens = np.concatenate([_widen(e.tokens, longest, -1) for e in episodes])
        self._rollout_logprobs = np.concatenate([_widen(e.rollout_logprobs, longest, 0.0) for e in episodes])
        groups = [np.arange(size) * int(n) // max(size, 1) for size, n in zip(sizes, num_groups, strict=True)]
        self._group = np.concatenate(groups)
        self._goes_on = np.ones(len(self._root), dtype=bool)
        # Where each episode stands: the place of its last node in the level before, and its last token's letter.
        self._parent, self._letter = self._root.copy(), np.full(len(self._root), -1)
        self._left: dict[int, list[np.ndarray]] = {}

    def split(
        self, level: Level, legal: Float[np.ndarray, "node letter"], illegal: Float[np.ndarray, "node"]
    ) -> Int[np.ndarray, "node group choice"]:
        """Counts the given episodes by token at each node; see `Splitter.split`."""
        states, letters = self._states, len(self._states.alphabet)
        active = np.flatnonzero(self._goes_on)
        ended = np.full(len(active), -1)
        token = self._tokens[active, level.depth] if level.depth < self._tokens.shape[1] else ended
        letter = np.minimum(states.find_letters(token), letters - 1)
        row = self._find_rows(level, active)
        child = np.where(states.alphabet[letter] == token, states.child[level.state[row], letter], -1)
        counts = np.zeros((len(level.cell), level.counts.shape[1], letters + 1), dtype=np.int64)
        group = self._group[active]
        np.add.at(counts, (row, group, np.where(child >= 0, letter, letters)), 1)
        gone = np.nonzero(child < 0)[0]
        for i in gone[np.lexsort((group[gone], row[gone]))]:
            self._left.setdefault(int(self._cell[active[i]]), []).append(token[i])
        self._parent[active], self._letter[active] = row, letter
        self._goes_on[active] = (child >= 0) & ~states.is_end[child]
        return counts

    def pick_illegal(
        self, cell: int, probabilities: Float[np.ndarray, "token"], count: int
    ) -> Int[np.ndarray, "{count}"]:
        """The tokens by which the given episodes left the answers; see `Splitter.pick_illegal`."""
        tokens, self._left[cell] = self._left[cell][:count], self._left[cell][count:]
        return np.array(tokens)

    def find_rollout_logprob(self, walk: Walk) -> Float[Tensor, "edge"]:
        """What the sampler said where it sampled, else the walk's own; see `Splitter.find_rollout_logprob`."""
        own = walk.edge_logprob.detach()
        if np.isnan(self._rollout_logprobs).all():
            return own
        given = torch.from_numpy(self.average_on_edges(walk)).to(own)
        return torch.where(given.isnan(), own, given)

    def average_on_edges(self, walk: Walk) -> Float[np.ndarray, "edge"]:
        """The sampler's own log-probability of each edge of the walk, averaged over the episodes through it.

        Returns:
            nats; NaN at edges that no episode took.
        """
        depth = walk.outcome_tokens.shape[1]
        ends = {
            (int(r), tuple(t[t >= 0])): i
            for i, (r, t) in enumerate(zip(walk.outcome_root, walk.outcome_tokens, strict=True))
        }
        total, count = np.zeros((2, len(walk.edge_cell)))
        for root, tokens, logprobs in zip(self._root, self._tokens, self._rollout_logprobs, strict=True):
            written = tokens[tokens >= 0][:depth]
            outcome = next(
                ends[key] for n in range(1, len(written) + 1) if (key := (int(root), tuple(written[:n]))) in ends
            )
            edges = walk.outcome_path[outcome]
            edges = edges[edges >= 0]
            total[edges] += logprobs[: len(edges)]
            count[edges] += 1
        with np.errstate(invalid="ignore"):
            return total / count

    def _find_rows(self, level: Level, active: Int[np.ndarray, "active"]) -> Int[np.ndarray, "active"]:
        """The node of the level that each active episode has reached: nodes ascend by parent, then by letter."""
        letters = len(self._states.alphabet) + 1
        key = level.parent * letters + level.letter
        return np.searchsorted(key, self._parent[active] * letters + self._letter[active])


def _widen(
    array: Shaped[np.ndarray, "episode token"], width: int, fill: float
) -> Shaped[np.ndarray, "episode {width}"]:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)
