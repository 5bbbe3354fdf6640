"""The well: where a policy is sure of a wrong symbol and hears nothing of it.

A policy gradient of P(right symbol) = p has the factor p, so a symbol that was pushed the wrong way is hardly ever
sampled right again, and a group of which all episodes were judged alike sends no gradient at all.
"""

import numpy as np

from memrl.policy.trie_walk import Walk

DEEP = 0.01
"""Below this P(right symbol) an env_step is in the well, if nothing pulls it out."""


def measure_well(walk: Walk, advantages: np.ndarray, root_cell: np.ndarray) -> np.ndarray:
    """The share of env_steps in the well: P(right symbol | those before it) < 0.01, and no advantage in the group.

    Args:
        walk: the episodes, and what the policies before the update thought of the secrets.
        advantages: of its outcomes, float64 (outcomes, groups, env_steps).
        root_cell: the cell of each root, ascending; int64 (roots,).

    Returns:
        0 to 1, over all env_steps of the secrets and all groups, float64 (cells,); NaN for a cell without episodes.

    Source: Mei et al. 2020, On the Global Convergence Rates of Softmax Policy Gradient Methods, arXiv 2005.06392 (the
    gravity well).
    """
    first = np.flatnonzero(np.append(True, walk.outcome_root[1:] != walk.outcome_root[:-1]))
    roots = walk.outcome_root[first]
    present = walk.outcome_counts > 0
    has_group = np.logical_or.reduceat(present, first)[:, :, None]
    is_judged = np.logical_or.reduceat(present[:, :, None] & (advantages != 0.0), first)
    symbol_log2 = walk.symbol_log2[roots, None, : advantages.shape[2]]
    counted = has_group & ~np.isnan(symbol_log2)
    in_well = counted & ~is_judged & (symbol_log2 < np.log2(DEEP))
    num_cells = root_cell[-1] + 1
    wells, all_steps = (np.bincount(root_cell[roots], x.sum((1, 2)), minlength=num_cells) for x in (in_well, counted))
    return np.divide(wells, all_steps, out=np.full(num_cells, np.nan), where=all_steps > 0)
