"""Runs a sweep: `python sweeps/launch.py grid=smoke`."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import chz

from memrl.cli import FAILED, build, read_field, read_value, read_words, repeat_command, run_command
from memrl.config import TrainConfig, describe_equal_losses
from memrl.fields import field
from memrl.policy.model_folder import check_model_folder
from memrl.suggest import did_you_mean
from memrl.sweep.calibrated import check_prompts
from memrl.sweep.console import SteadyConsole
from memrl.sweep.cost import describe_cost
from memrl.sweep.environment import set_environment
from memrl.sweep.execution import Execution
from memrl.sweep.grid import list_grids, load_grid, read_seeds
from memrl.sweep.plan import check_device, describe_addresses, find_left
from memrl.sweep.rollouts import check_engines
from memrl.tables.places import find_grids, own_address
from memrl.tables.store import TableStore
from memrl.task.own_reward import check_own_reward

USAGE = """\
usage: python sweeps/launch.py grid=NAME [field=value[,value...] ...]

Trains every cell of the grid NAME (sweeps/grids/NAME.yaml) that has not finished yet, and writes results/NAME.
Cell fields take one value or several: N=16,64 learning_rate=1e-3,3e-3. They replace the grid's values of that
field; where the grid's channels set the field (reward_type=binary), they keep the channels that have the value.
Ctrl-C keeps what has finished; the same command goes on.
"""

_ONE_VALUE = ("bit_separator",)
"""Fields whose text may contain a comma."""


@chz.chz
class Selection:
    """Which cells to run."""

    grid: str = field(default="", doc="name of a file in sweeps/grids")
    seeds: str | None = field(default=None, doc="a count (0, 1, ...), or seeds: 3,5,7; unset: as the grid says")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    with ExitStack() as stack:
        with read_words(argv, Selection, Execution, TrainConfig, usage=USAGE) as words:
            selection, execution = build(Selection, words), build(Execution, words)
            cells = calibrate_models(selection.grid, select_cells(selection, words), dry_run=execution.dry_run)
            check_device(execution)
            check_engines(list(cells.values()), execution)
            store = TableStore(execution.results or own_address(selection.grid))
            left = list(find_left(store, cells, execution).values())
            check_prompts(left, execution)
            if execution.dry_run:
                say_cost(selection.grid, len(cells), left, store, execution)
                return 0
            stack.enter_context(store.open_for_writing())
        set_environment(execution)
        # Imported once the words are known to be sound, so that a bad one is refused at once.
        from memrl.sweep.sweep import Sweep

        command = repeat_command("sweeps/launch.py", argv)
        console = SteadyConsole()
        for line in [*store.damaged, *describe_equal_losses(cells.values())]:
            console.say(line)
        sweep = Sweep(selection.grid, cells, execution, store, command, console)
        if sweep.left or sweep.unplayed:
            sweep.run()
        all_sound = sweep.finish()
        return sweep.stop.exit_code or (0 if all_sound else FAILED)


def say_cost(grid: str, num_cells: int, left: Sequence[TrainConfig], store: TableStore, execution: Execution) -> None:
    """Says what the command would run without dry_run, and what that would take; writes nothing."""
    console = SteadyConsole()
    console.say(f"{grid}: {num_cells:,} cells, {num_cells - len(left):,} of them finished")
    for line in describe_cost(grid, left, store, execution) if left else []:
        console.say(line)
    console.say(describe_addresses(store))


def select_cells(selection: Selection, words: Mapping[str, str]) -> dict[str, TrainConfig]:
    """The cells of the grid with the values that the command line gives, by cell_id.

    Raises:
        ValueError: there is no such grid; or a cell makes no sense, or names a model or a reward that is not there.
    """
    grids = find_grids()
    if not selection.grid:
        raise ValueError(f"grid must name a sweep, got none; write grid=NAME{did_you_mean('', list_grids(grids))}")
    if selection.grid not in list_grids(grids):
        raise ValueError(f"unknown grid {selection.grid!r}{did_you_mean(selection.grid, list_grids(grids))}")
    values = read_values(words)
    if selection.seeds is not None:
        seeds = [read_value("seeds", int, text) for text in selection.seeds.split(",")]
        values["seed"] = read_seeds(seeds if len(seeds) > 1 else seeds[0])
    cells = load_grid(selection.grid, grids).override(values).cells()
    for model in {cell.model for cell in cells.values()}:
        check_model_folder(model)
    for cell in {cell.reward_type: cell for cell in cells.values() if ":" in cell.reward_type}.values():
        # A reward function of the user's own may lie in the folder that the command runs in.
        sys.path.append(str(Path.cwd()))
        check_own_reward(cell)
    return cells


def calibrate_models(grid: str, cells: dict[str, TrainConfig], *, dry_run: bool) -> dict[str, TrainConfig]:
    """The cells on base models that are calibrated for their prompts, where the grid asks for it.

    Raises:
        ValueError: a model can't be read, or not be calibrated.
    """
    if not load_grid(grid, find_grids()).calibrate:
        return cells
    # It loads torch, which grids that do not ask for it need not wait for.
    from memrl.calibrate import bring_calibrated

    addresses = bring_calibrated(cells.values(), dry_run=dry_run)
    moved = [chz.replace(cell, model=addresses[cell.model]) for cell in cells.values()]
    return {cell.cell_id: cell for cell in moved}


def read_values(words: Mapping[str, str]) -> dict[str, Sequence[object]]:
    """The values of every cell field among the words.

    Raises:
        ValueError: a value is not of its field's type.
    """
    texts = {
        name: [text] if name in _ONE_VALUE else text.split(",")
        for name, text in words.items()
        if name in TrainConfig.__annotations__
    }
    return {name: [read_field(TrainConfig, name, text) for text in given] for name, given in texts.items()}


if __name__ == "__main__":
    run_command(main)
