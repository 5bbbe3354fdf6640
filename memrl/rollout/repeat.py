"""A batch of episodes that is walked more than once."""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from memrl.policy.trie_walk import Level, Splitter, Walk


class RepeatableSplitter:
    """Splits as another splitter does on its first walk, and in the same way on every later one.

    The episodes are those of the first walk, and so is the sampler's log-probability of each edge; what the policy says
    of them is each walk's own.

    Args:
        splitter: who decides on the first walk.
    """

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        self._splits: list[np.ndarray] = []
        self._illegal: list[np.ndarray] = []
        self._rollout_logprob: Tensor | None = None
        self._num_illegal = 0

    def split(
        self, level: Level, legal: Float[np.ndarray, "node letter"], illegal: Float[np.ndarray, "node"]
    ) -> Int[np.ndarray, "node group choice"]:
        """See `Splitter.split`."""
        if level.depth == 0:
            self._num_illegal = 0
        if level.depth == len(self._splits):
            self._splits.append(self._splitter.split(level, legal, illegal))
        return self._splits[level.depth]

    def pick_illegal(
        self, cell: int, probabilities: Float[np.ndarray, "token"], count: int
    ) -> Int[np.ndarray, "{count}"]:
        """See `Splitter.pick_illegal`."""
        if self._num_illegal == len(self._illegal):
            self._illegal.append(self._splitter.pick_illegal(cell, probabilities, count))
        self._num_illegal += 1
        return self._illegal[self._num_illegal - 1]

    def find_rollout_logprob(self, walk: Walk) -> Float[Tensor, "edge"]:
        """The sampler's, as of the first walk; see `Splitter.find_rollout_logprob`."""
        if self._rollout_logprob is None:
            self._rollout_logprob = self._splitter.find_rollout_logprob(walk)
        return self._rollout_logprob
