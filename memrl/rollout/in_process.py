"""Sampling by the learner's own weights: exact draws at the nodes of the answers, nothing transferred."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from memrl.config import TrainConfig
from memrl.policy.forest import Forest
from memrl.policy.trie_walk import Level, Walk

_EPISODE_STREAM = 0xE915
"""Keeps the episodes' random numbers apart from every other stream of the same cell."""


def start_generators(configs: Sequence[TrainConfig]) -> list[np.random.Generator]:
    """The random numbers of each cell's episodes: a stream of its own, which does not depend on its neighbors."""
    return [np.random.default_rng(np.random.SeedSequence([_EPISODE_STREAM, int(c.cell_id, 16)])) for c in configs]


class InProcessSampler:
    """Draws every cell's episodes on-policy; the examples of an sft cell follow its secret.

    Args:
        configs: the cells.
        generators: what each draws from.
        forest: their answers.
    """

    def __init__(
        self, configs: Sequence[TrainConfig], generators: Sequence[np.random.Generator], forest: Forest
    ) -> None:
        self._forest = forest
        self._supervised = np.array([c.algorithm == "sft" for c in configs])
        self._generators = generators

    def split(
        self, level: Level, legal: Float[np.ndarray, "node letter"], illegal: Float[np.ndarray, "node"]
    ) -> Int[np.ndarray, "node group choice"]:
        """Splits episodes over tokens by a draw each; see `Splitter.split`."""
        weights = np.concatenate([legal, illegal[:, None]], axis=1)
        self._mend_diverged(level, weights)
        counts = self._draw(level, weights)
        told = np.nonzero(self._supervised[level.cell])[0]
        if len(told):
            letter = self._forest.secret_letters[level.root[told], level.depth]
            counts[told, :, letter] = level.counts[told]
        return counts

    def _draw(self, level: Level, weights: Float[np.ndarray, "node choice"]) -> Int[np.ndarray, "node group choice"]:
        """Draws every episode's choice by inversion; zero for supervised cells."""
        nodes, groups = level.counts.shape
        drawn = np.where(self._supervised[level.cell][:, None], 0, level.counts)
        of_cell = np.bincount(level.cell, drawn.sum(1), minlength=len(self._generators)).astype(np.int64)
        uniform = np.empty(of_cell.sum())
        for cell, end in zip(np.nonzero(of_cell)[0], np.cumsum(of_cell[of_cell > 0]), strict=True):
            self._generators[cell].random(out=uniform[end - of_cell[cell] : end])
        ends = weights.cumsum(1)
        ends /= ends[:, -1:]
        place = np.repeat(np.arange(nodes * groups), drawn.ravel())
        node = place // groups
        choice = (uniform[:, None] >= ends[node, :-1]).sum(1)
        choices = weights.shape[1]
        counts = np.bincount(place * choices + choice, minlength=nodes * groups * choices)
        return counts.reshape(nodes, groups, choices)

    def _mend_diverged(self, level: Level, weights: Float[np.ndarray, "node choice"]) -> None:
        """Lets a diverged policy write any legal token: its cell fails by its P(secret), and its neighbors go on."""
        diverged = np.nonzero(~np.isfinite(weights).all(axis=1))[0]
        if len(diverged):
            some_legal = (self._forest.states.child[level.state[diverged]] >= 0).argmax(axis=1)
            weights[diverged] = 0.0
            weights[diverged, some_legal] = 1.0

    def pick_illegal(
        self, cell: int, probabilities: Float[np.ndarray, "token"], count: int
    ) -> Int[np.ndarray, "{count}"]:
        """Draws the tokens of episodes that left the answers; see `Splitter.pick_illegal`."""
        return self._generators[cell].choice(len(probabilities), size=count, p=probabilities / probabilities.sum())

    def find_rollout_logprob(self, walk: Walk) -> Float[Tensor, "edge"]:
        """The walk's own log-probabilities: its weights have sampled; see `Splitter.find_rollout_logprob`."""
        return walk.edge_logprob.detach()
