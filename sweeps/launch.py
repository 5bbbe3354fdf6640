"""Runs a sweep: `python sweeps/launch.py grid=smoke`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz

from memrl.cli import (
    build,
    exit_on_bad_input,
    exit_with_help,
    read_field,
    read_value,
    reject_unknown,
    split_words,
    wants_help,
)
from memrl.config import TrainConfig, did_you_mean
from memrl.policy.model_folder import check_model_folder
from memrl.sweep.execution import Execution

if TYPE_CHECKING:
    from memrl.sweep.launch import Launch

INTERRUPTED = 130
"""Exit code after a Ctrl-C that left no time for more."""

GRIDS = Path(__file__).parent / "grids"

USAGE = """\
usage: python sweeps/launch.py grid=NAME [field=value[,value...] ...]

Trains every cell of sweeps/grids/NAME.yaml that has not finished yet, and writes results/NAME.
Cell fields take one value or several: N=16,64 learning_rate=1e-3,3e-3. They replace the grid's values of that
field; where the grid's channels set the field (reward_type=binary), they keep the channels that have the value.
Ctrl-C keeps what has finished; the same command goes on.
"""

_ONE_VALUE = ("bit_separator",)
"""Fields whose text may contain a comma."""


@chz.chz
class Selection:
    """Which cells to run."""

    grid: str = chz.field(default="", doc="name of a file in sweeps/grids")
    seeds: str | None = chz.field(default=None, doc="a count (0, 1, ...), or seeds: 3,5,7; unset: as the grid says")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if wants_help(argv):
        exit_with_help(USAGE, (Selection, Execution, TrainConfig))
    with ExitStack() as stack:
        with exit_on_bad_input():
            words = split_words(argv)
            launch = prepare_launch(words, command=f"python sweeps/launch.py {shlex.join(argv)}")
            if not launch.execution.dry_run:
                stack.enter_context(launch.store.open_for_writing())
        from rich.console import Console

        if launch.execution.dry_run:
            launch.preview(Console())
            return 0
        return launch.run(Console())


def prepare_launch(words: Mapping[str, str], command: str) -> Launch:
    """Reads all that the command line says; starts and writes nothing.

    Args:
        words: the command line.
        command: the command as the user would give it again.

    Raises:
        ValueError: an unknown grid or field, a bad value, or a cell that makes no sense.
    """
    classes = (Selection, Execution, TrainConfig)
    reject_unknown(words, [name for cls in classes for name in chz.chz_fields(cls)])
    selection, execution, values = build(Selection, words), build(Execution, words), read_values(words)
    grids = sorted(path.stem for path in GRIDS.glob("*.yaml"))
    if selection.grid not in grids:
        raise ValueError(f"unknown grid {selection.grid!r}{did_you_mean(selection.grid, grids)}")
    cells = select_cells(selection, values)
    # Imported once the cells are known to be valid, so that a bad one is refused at once.
    from memrl.sweep.launch import Launch
    from memrl.sweep.plan import check_device
    from memrl.sweep.rollouts import check_engines
    from memrl.tables.places import reference_address
    from memrl.tables.store import TableStore

    check_device(execution)
    check_engines(list(cells.values()), execution)
    store = TableStore(execution.results_address(selection.grid))
    return Launch(selection.grid, cells, execution, store, command, reference_address(selection.grid))


def select_cells(selection: Selection, values: dict[str, Sequence[Any]]) -> dict[str, TrainConfig]:
    """The cells of the grid with the values that the command line gives, by cell_id.

    Raises:
        ValueError: a cell makes no sense, or names a model or a reward function that is not there.
    """
    from memrl.sweep.grid import load_grid, read_seeds

    if selection.seeds is not None:
        seeds = [read_value("seeds", int, text) for text in selection.seeds.split(",")]
        values = values | {"seed": read_seeds(seeds if len(seeds) > 1 else seeds[0])}
    cells = load_grid(selection.grid, GRIDS).override(values).cells()
    for model in {cell.model for cell in cells.values()}:
        check_model_folder(model)
    for cell in {cell.reward_type: cell for cell in cells.values() if ":" in cell.reward_type}.values():
        check_reward(cell)
    return cells


def check_reward(cell: TrainConfig) -> None:
    """Imports a reward function of the user's own, from the folder that the command runs in if need be.

    Raises:
        ValueError: there is none, or it is no function of (guess, secret, N).
    """
    from memrl.task.reward import build_channel

    sys.path.append(str(Path.cwd()))
    build_channel(cell)


def read_values(words: Mapping[str, str]) -> dict[str, Sequence[Any]]:
    """The values of every cell field among the words.

    Raises:
        ValueError: a value is not of its field's type.
    """
    fields = [name for name in words if name in TrainConfig.__annotations__]
    return {
        name: [
            read_field(TrainConfig, name, text)
            for text in ([words[name]] if name in _ONE_VALUE else words[name].split(","))
        ]
        for name in fields
    }


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
