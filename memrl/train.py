"""One cell, trained where the command was given: what `rl_train` and `sft_train` share."""

import math
import os
from contextlib import ExitStack, suppress
from functools import partial

import pyarrow.compute as pc
import torch

from memrl.cli import FAILED, exit_on_bad_input
from memrl.config import TrainConfig, describe_equal_losses
from memrl.policy.base_model import bring_model
from memrl.rollout.vllm_actor import EngineOptions, VLLMEngine
from memrl.sweep.checkpoints import Checkpoints, Saver
from memrl.sweep.console import SteadyConsole
from memrl.sweep.execution import RunOptions
from memrl.sweep.pack_run import PackRun, load_pack, set_up_torch, start_pack
from memrl.sweep.progress import ProgressLine
from memrl.sweep.recorder import Recorder
from memrl.sweep.run_line import RunLine, name_episodes
from memrl.sweep.stopping import StopRequest, catch_signals
from memrl.sweep.stretch import Stretch
from memrl.tables.open_log import open_log
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE, Row
from memrl.tables.store import TableStore

_STRETCH_SECONDS = 0.25
"""How often the progress line moves, if an update takes no longer."""


def train_cell(cell: TrainConfig, options: RunOptions) -> int:
    """Trains the cell to its end, writes its rows, and prints its result.

    A cell that had finished before is not trained again: its stored result is printed. One that was ended before its
    end goes on from its last checkpoint. Ctrl-C keeps the curves so far, but leaves no row, so that the cell does not
    count as finished. Bad input that only the work can tell (tables that
    can't be written, a model that can't be read or is not calibrated) ends the process with exit code 2.

    Returns:
        The exit code: 0, 1 where the cell failed, 130 on Ctrl-C and 143 on SIGTERM.
    """
    console = SteadyConsole()
    with ExitStack() as stack:
        with exit_on_bad_input():
            store = TableStore(options.results)
            stack.enter_context(store.open_for_writing(cell.cell_id))
            for line in [*store.damaged, *describe_equal_losses([cell])]:
                console.say(line)
            earlier = None if options.overwrite else find_finished_row(store, cell)
            if earlier is not None:
                console.say("This cell has finished before; overwrite=True trains it again.")
                return conclude(earlier, options, console)
            with console.status("loading the model"):
                log = open_log(options.log_to, options.wandb_project, options.results)
                checkpoints = Checkpoints(options.results)
                run = start_run(cell, options, checkpoints, stack)
        if log is not None and log.notice:
            console.say(log.notice)
        if run.updates:
            console.say(f"going on after {run.updates:,} updates of an earlier run")
        # What an earlier run of this cell left: it failed, is to be replaced, or will be told again from a checkpoint.
        store.drop_cells([cell.cell_id])
        stop = StopRequest()
        stack.enter_context(catch_signals(stop))
        last = train_to_end(cell, run, store, checkpoints, stop, console)
        if not last.rows:
            told = f"Stopped after {last.updates:,} updates ({last.episodes:,} episodes)"
            where = store.table_address(CURVES)
            console.say(f"{told}; the curves so far are in {where}. The same command goes on.")
            return stop.exit_code
        if log is not None:
            curves = store.read(CURVES)
            log.log_cells(last.rows, curves.filter(pc.equal(curves["cell_id"], cell.cell_id)))
            log.close()
        return conclude(last.rows[0], options, console)


def find_finished_row(store: TableStore, cell: TrainConfig) -> Row | None:
    """The row of a cell that was trained to its end before; None where there is none."""
    if cell.cell_id not in store.finished_cell_ids():
        return None
    rows = store.read(EPISODES_TO_MEMORIZE)
    mine = pc.and_(pc.equal(rows["cell_id"], cell.cell_id), pc.equal(rows["agent"], "lora"))
    return rows.filter(mine).to_pylist()[0]


def start_run(cell: TrainConfig, options: RunOptions, checkpoints: Checkpoints, stack: ExitStack) -> PackRun:
    """Loads the model for a pack of this one cell, which goes on from its checkpoint where an earlier run left one.

    Args:
        cell: the cell.
        options: where it runs.
        checkpoints: of earlier runs.
        stack: closes the engine, where one samples.

    Raises:
        ValueError: the device is missing, the model can't be read, or it is not calibrated for the cell's prompt.
    """
    set_up_torch(options.num_threads or (1 if cell.model == "embedded" else None))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu or auto where torch finds no GPU, got cuda")
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    engine = start_engine(cell, device) if cell.rollout == "vllm" else None
    if engine is not None:
        stack.callback(engine.close)
    ids = [cell.cell_id]
    load = partial(load_pack, cell_ids=ids, backend=engine, adapters=options.save_adapters)
    with checkpoints.open([cell]) as folder:
        if folder is not None and not options.overwrite:
            with suppress(Exception):  # of another version of the code, say: it starts afresh
                return PackRun.load(folder, load, ids, holds_curves=False)
    return PackRun(start_pack([cell], device, engine, adapters=options.save_adapters), holds_curves=False)


def start_engine(cell: TrainConfig, device: str) -> VLLMEngine:
    """An engine in this very process; on a GPU it shares it with the learner, and sleeps while that updates."""
    return VLLMEngine(
        EngineOptions(
            model=bring_model(cell.model),
            dtype=cell.dtype,
            max_loras=1,
            max_lora_rank=cell.lora_rank,
            colocated=device == "cuda",
        )
    )


def train_to_end(
    cell: TrainConfig,
    run: PackRun,
    store: TableStore,
    checkpoints: Checkpoints,
    stop: StopRequest,
    console: SteadyConsole,
) -> Stretch:
    """Trains until the cell has ended or somebody wants it to stop, writing as it goes; returns the last stretch."""
    recorder, saver = Recorder(store, num_cells=1), Saver(checkpoints, [cell])
    recorder.begin([[cell]])
    last = run.end_stretch()
    recorder.take(0, last)
    told = RunLine(cell, last.updates)
    try:
        with ProgressLine(lambda: told.describe(last, console.width), console) as line:
            while not (run.finished or stop):
                last = run.advance(_STRETCH_SECONDS)
                recorder.take(0, last)
                line.tick()
                if not run.finished and (saver.is_due or stop):
                    saver.save(run.save)
    finally:
        recorder.flush()
    if run.finished:
        checkpoints.remove([cell])
    return last


def conclude(row: Row, options: RunOptions, console: SteadyConsole) -> int:
    """Prints the cell's result; returns the exit code."""
    console.say(f"{describe_result(row)} | tables in {options.results}")
    adapter = os.path.join(options.save_adapters, row["cell_id"])
    if options.save_adapters and os.path.isdir(adapter):
        console.say(f"adapter in {adapter}")
    return FAILED if row["status"] == "failed" else 0


def describe_result(row: Row) -> str:
    """The result line of a cell, in bits, from its row of episodes_to_memorize.

    E50 and E90 of a run that ended first are written as `> episodes used`: censored, not reached.
    """
    unit = name_episodes(row["algorithm"])
    if row["status"] == "failed":
        return f"failed after {row['episodes'] or 0:,} {unit}: {row['error']}"
    known = f"absorbed {row['absorbed_bits']:.2f} of {row['signal_bits']:.2f} bits, observed {row['observed_bits']:.2f}"
    reached = ", ".join(f"{name.upper()} {_format_reach(row, name)}" for name in ("e50", "e90"))
    rate = row["absorbed_bits"] / max(row["episodes"], 1)
    updates = f"{row['updates']:,} update{'' if row['updates'] == 1 else 's'}"
    verdict = "memorized" if row["status"] == "memorized" else f"not memorized within {updates}"
    return " | ".join(
        [
            f"{verdict}: {reached} {unit}",
            known,
            f"{rate:.3g} bits per {unit[:-1]}, capacity {_format_capacity(row)}",
        ]
    )


def _format_reach(row: Row, name: str) -> str:
    return f"> {row['episodes']:,}" if row[name] is None else f"{row[name]:,}"


def _format_capacity(row: Row) -> str:
    nominal = row["capacity_nominal_bits"]
    shown = "unbounded" if math.isinf(nominal) else f"{nominal:.3g}"
    return f"{shown} nominal, {row['capacity_uniform_bits']:.3g} at a uniform guess"
