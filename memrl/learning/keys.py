"""Cells of many keys: all of their secrets are scored from time to time, and every update asks a few."""

import numpy as np
from jaxtyping import Bool, Float

from memrl.learning.policy import PackPolicy
from memrl.learning.roots import draw_keys
from memrl.learning.state import PackState
from memrl.policy.trie_walk import score_secrets

_MOST_ROWS = 2048
"""Tokens of prompts and secrets that are scored at a time."""


def ask_keys(policy: PackPolicy, state: PackState) -> None:
    """Lets the pack's next update ask the keys whose turn it is."""
    if policy.has_keys:
        drawn = zip(state.configs, state.progress.batches.tolist(), strict=True)
        policy.plant([draw_keys(*cell) for cell in drawn])


def score_keys(policy: PackPolicy, state: PackState, due: Bool[np.ndarray, "cell"]) -> Float[np.ndarray, "cell"]:
    """Scores the secrets of all keys, in portions, and lets the pack be asked what it was asked before.

    Args:
        policy: of the pack.
        state: likewise.
        due: which cells are measured.

    Returns:
        log2 P summed over the keys of each cell that is due and has keys, NaN for the others.
    """
    has_keys = np.array([config.num_keys is not None for config in state.configs])
    cells = np.flatnonzero(due & has_keys)
    total = np.where(due & has_keys, 0.0, np.nan)
    if len(cells):
        asked = [policy.roots.key[policy.roots.cell == cell] for cell in range(len(state))]
        longest = max(len(policy.keys[cell].prompts[-1]) for cell in cells) + policy.forest.states.depth
        size = max(1, _MOST_ROWS // (longest * len(cells)))
        nothing = np.arange(0)
        for start in range(0, max(len(policy.keys[cell]) for cell in cells), size):
            portion = [nothing] * len(state)
            for cell in cells:
                portion[cell] = np.arange(start, max(start, min(start + size, len(policy.keys[cell]))))
            policy.plant(portion)
            total[cells] += np.bincount(policy.roots.cell, score_secrets(policy.network, policy.forest), len(state))[
                cells
            ]
        policy.plant(asked)
    return total
