"""Numbers that others published, to stand beside ours."""

import pandas as pd

MEMORIZATION_STUDY = "memorization-study, bledden.github.io, 2026: MLP on CPU, 10 seeds, at most 10,000 episodes"

_EPISODES = {
    "SFT": {10: 2, 100: 2, 500: 2},
    "binary": {10: 19, 100: 129, 500: 599},
    "distance": {10: 7004, 100: None, 500: None},
}
"""Episodes to memorize by channel (as readers call it) and N; None where 10,000 episodes were not enough."""

PUBLISHED_BUDGET = 10_000
LLM_ARM = "the same author's LLM arm (1B model, LoRA, N = 100): 3 of 120 runs converged"


def published_episodes() -> pd.DataFrame:
    """Published episodes to memorize.

    >>> published_episodes().query("channel == 'binary'")["episodes"].tolist()
    [19, 129, 599]

    Returns:
        One row per channel and N: channel, N, episodes (the budget where it was not reached), reached, source.

    Source: the memorization study that docs/sources.md lists.
    """
    rows = [
        (channel, N, PUBLISHED_BUDGET if episodes is None else episodes, episodes is not None, MEMORIZATION_STUDY)
        for channel, by_N in _EPISODES.items()
        for N, episodes in by_N.items()
    ]
    return pd.DataFrame(rows, columns=["channel", "N", "episodes", "reached", "source"])
