"""Packing: which cells train together, and which packs go first."""

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, groupby, pairwise

from memrl.config import TrainConfig, shared_fields
from memrl.sweep.pack_memory import estimate_cell_bytes

MOST_CELLS = 128
"""The largest pack that is made unless `pack_size` asks for more: beyond it, a pass costs as much a cell as before."""

_ABSORPTION = 0.15
"""Adam moves a weight by about learning_rate per update, so absorbing takes about this / learning_rate updates."""

_MANY_PACKS = 16
"""So many go in an order that is spread."""

_MANY = 10**12
"""More secrets than any run tries."""


def estimate_updates(cell: TrainConfig) -> int:
    """A rough guess of how many updates a cell will need; used only to order packs: results do not depend on it.

    >>> estimate_updates(TrainConfig(N=1024, learning_rate=3e-3)), estimate_updates(TrainConfig(algorithm="sft"))
    (82, 50)
    """
    episodes = min(cell.num_secrets, _MANY) * cell.channel_kind.exploration
    updates = _ABSORPTION / cell.learning_rate + episodes / cell.episodes_per_update
    return max(1, min(math.ceil(updates), cell.episode_budget // cell.episodes_per_update))


def choose_pack_size(num_cells: int, num_trials: int) -> int:
    """The pack size that gives each of the trials at once a pack, up to `MOST_CELLS`.

    >>> choose_pack_size(100, 2), choose_pack_size(10_000, 2)
    (50, 128)
    """
    return max(1, min(MOST_CELLS, math.ceil(num_cells / num_trials)))


def pack_cells(
    cells: Sequence[TrainConfig],
    pack_size: int,
    most_bytes: float = math.inf,
    whole: Callable[[TrainConfig], Hashable] | None = None,
) -> list[list[TrainConfig]]:
    """Cuts cells into packs of at most `pack_size`, in the order in which they go: see `order_packs`.

    Cells of one pack share what a base model's pass must share. Within that, cells of one rank that will end at about
    the same time go together, so that packs shrink evenly, and among these cells of like env_type and N, so that
    little is padded. The packs of one base model are of almost equal size. Same cells in the same order, same packs.

    Args:
        cells: the cells, in any order.
        pack_size: most cells of a pack, at least 1.
        most_bytes: about the most memory that the cells of a pack may take; one cell may take more.
        whole: names what is not to be torn apart: cells of one name train in one pack, beyond its size if need be, but
            not beyond its memory.

    Returns:
        The packs, each cell in one of them.
    """
    packs = []
    for _, sharing in groupby(sorted(cells, key=shared_fields), key=shared_fields):
        alike = sorted(sharing, key=_likeness)
        packs += _cut(alike, pack_size, most_bytes) if whole is None else _join(alike, pack_size, most_bytes, whole)
    return order_packs(packs)


def _join(
    cells: Sequence[TrainConfig], pack_size: int, most_bytes: float, whole: Callable[[TrainConfig], Hashable]
) -> list[list[TrainConfig]]:
    """Packs of whole groups of cells, as many in each as there is room for; in parts, what memory does not hold."""
    groups: dict[Hashable, list[TrainConfig]] = {}
    for cell in cells:
        groups.setdefault(whole(cell), []).append(cell)
    packs: list[list[TrainConfig]] = []
    for group in groups.values():
        together = [*packs[-1], *group] if packs else group
        if len(together) <= pack_size and len(_cut(together, pack_size, most_bytes)) == 1:
            packs[-1:] = [together]
        else:
            packs += _cut(group, len(group), most_bytes)
    return packs


def _cut(cells: list[TrainConfig], pack_size: int, most_bytes: float) -> list[list[TrainConfig]]:
    # A cell that takes more than its share of the memory counts as several.
    share = most_bytes / pack_size
    ends = list(accumulate(max(1, math.ceil(estimate_cell_bytes(cell) / share)) for cell in cells))
    num_packs = math.ceil(ends[-1] / pack_size)
    cuts = [bisect_right(ends, ends[-1] * i // num_packs) for i in range(num_packs + 1)]
    return [cells[start:end] for start, end in pairwise(cuts) if start < end]


def order_packs(packs: Sequence[list[TrainConfig]]) -> list[list[TrainConfig]]:
    """Packs in an order in which those that have ended say something of those to come, and none that is long is last.

    Few go by how long they are expected to take, the longest first. Many are spread, so that every stretch of the sweep
    has long ones and short ones, rates of learning that are high and low; only the last quarter goes by length.
    """
    ordered = sorted(packs, key=lambda pack: -estimate_pack_updates(pack))
    if len(ordered) < _MANY_PACKS:
        return ordered
    spread = [ordered[place] for place in sorted(range(len(ordered)), key=_reverse_bits)]
    last = len(ordered) - len(ordered) // 4
    return spread[:last] + sorted(spread[last:], key=lambda pack: -estimate_pack_updates(pack))


def _reverse_bits(place: int) -> float:
    """The place's binary digits behind the point, in reverse: 0, 1/2, 1/4, 3/4, 1/8 and so on."""
    return sum(((place >> digit) & 1) / 2 ** (digit + 1) for digit in range(place.bit_length()))


def estimate_pack_updates(pack: Sequence[TrainConfig]) -> int:
    """A rough guess of the updates that a pack makes, cell by cell."""
    return sum(estimate_updates(cell) for cell in pack)


def _likeness(cell: TrainConfig) -> tuple[object, ...]:
    # The logarithm's whole part: guesses closer than that are no reason to tear cells of one N apart.
    length = int(math.log2(estimate_updates(cell)))
    likeness = (length, cell.env_type, cell.N, cell.channel_name, cell.episodes_per_update, cell.learning_rate)
    # Rank first: a pack pads every adapter to its largest one.
    return (cell.lora_rank, *likeness, cell.seed)
