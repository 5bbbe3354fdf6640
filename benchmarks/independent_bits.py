"""Episodes that policy gradient without a network needs for L independent bits, by credit and objective.

Groups of 8, Adam, the best rate, medians of 32 secrets; beside numbers of an earlier simulation.

uv run python benchmarks/independent_bits.py
"""

import numpy as np

from memrl.config import TrainConfig
from memrl.task.answer_format import cell_digits
from memrl.task.reach import MILESTONES
from memrl.theory.agents import SYMBOL_LEARNING_RATES
from memrl.theory.tabular import train_tabular

LENGTHS = (4, 8, 16, 32, 64, 128, 256)
EARLIER = {
    "per_step": (16, 16, 24, 24, 32, 40, 40),
    "return_to_go": (16, 16, 84, 176, 328, 564, 1232),
    "episode": (16, 36, 104, 256, 536, 1196, 2264),
}
"""Our own earlier simulation of E50: group_centered, groups of 8, Adam, medians of 16 runs at the best rate."""

OBJECTIVES = (
    {"advantage": "rejection"},
    {"advantage": "maxrl"},
    {"advantage": "std_normalized"},
    {"advantage": "exponential_weights", "temperature": 0.5},
    {"advantage": "delightful"},
)
NUM_SECRETS = 32


def best_median(milestone: str, length: int, **fields: object) -> float:
    """The median episodes to a milestone at the best of the learning rates.

    >>> best_median("e50", 4, reward_type="per_element", advantage="rejection")
    16.0
    """
    task = {"N": 2, "secret_length": length, "env_type": "multi_step", "group_size": 8, "n_steps": 40 + 3 * length}
    config = TrainConfig(**{**task, **fields})
    seeds = list(range(NUM_SECRETS))
    secrets = np.array([cell_digits(TrainConfig(**{**task, **fields, "seed": seed})) for seed in seeds])
    medians = []
    for rate in SYMBOL_LEARNING_RATES:
        first = train_tabular(config, secrets, seeds, np.full(len(seeds), rate)).reach.first
        episodes = first[:, MILESTONES.index(milestone)]
        medians.append(float(np.median(np.where(episodes < 0, np.inf, episodes))))
    return min(medians)


def main() -> None:
    """Prints the table."""
    print(f"{'E50 (earlier) / episodes to half the bits':42}" + "".join(f"{f'L = {length}':>20}" for length in LENGTHS))
    for credit, earlier in EARLIER.items():
        fields = {"reward_type": "per_element", "credit": credit}
        told = (
            f"{best_median('e50', L, **fields):g} ({before}) / {best_median('half_bits', L, **fields):g}"
            for L, before in zip(LENGTHS, earlier, strict=True)
        )
        print(f"{f'group_centered, credit={credit}':42}" + "".join(f"{text:>20}" for text in told), flush=True)
    for rule in OBJECTIVES:
        name = f"{rule['advantage']}, credit=per_step"
        own = (best_median("e50", L, reward_type="per_element", **rule) for L in LENGTHS)
        print(f"{name:42}" + "".join(f"{mine:>20g}" for mine in own), flush=True)


if __name__ == "__main__":
    main()
