"""Episodes that tabular policy gradient needs for L independent bits, by credit and objective, beside earlier numbers.

uv run python benchmarks/independent_bits.py
"""

from memrl.config import Credit
from memrl.task.advantage import AdvantageRule
from memrl.theory.independent_bits import median_episodes

LENGTHS = (4, 8, 16, 32)
EARLIER: dict[Credit, tuple[int, ...]] = {
    "per_step": (16, 16, 24, 24),
    "return_to_go": (16, 16, 84, 176),
    "episode": (16, 36, 104, 256),
}
"""Our own earlier simulation: group_centered, groups of 8, Adam, medians of 16 runs at the best rate."""

OBJECTIVES = [
    AdvantageRule("rejection"),
    AdvantageRule("maxrl"),
    AdvantageRule("std_normalized"),
    AdvantageRule("exponential_weights", temperature=0.5),
    AdvantageRule("delightful"),
]


def main() -> None:
    """Prints the table."""
    print(f"{'episodes until P(all bits right) = 1/2':40}" + "".join(f"{f'L = {length}':>16}" for length in LENGTHS))
    for credit, earlier in EARLIER.items():
        own = [median_episodes(length, AdvantageRule("group_centered"), credit)[0] for length in LENGTHS]
        pairs = (f"{mine:g} (was {before})" for mine, before in zip(own, earlier, strict=True))
        print(f"{f'group_centered, credit={credit}':40}" + "".join(f"{pair:>16}" for pair in pairs))
    for rule in OBJECTIVES:
        own = [median_episodes(length, rule)[0] for length in LENGTHS]
        print(f"{f'{rule.advantage}, credit=per_step':40}" + "".join(f"{mine:>16g}" for mine in own))


if __name__ == "__main__":
    main()
