"""One cell, trained where the command was given: what `rl_train` and `sft_train` share."""

import math
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import chz

from memrl.config import TrainConfig
from memrl.tables.wandb_log import WandbLog, check_project

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from memrl.learning.pack import Pack
    from memrl.learning.progress import CellProgress
    from memrl.rollout.vllm_actor import VLLMEngine

FAILED, INTERRUPTED = 1, 130
"""Exit codes: the cell failed; Ctrl-C."""

Device = Literal["auto", "cpu", "cuda"]

_WRITE_SECONDS = 2.0
"""Curves are written this often while the cell trains."""

_PLAIN_SECONDS = 10.0
"""Without a terminal, the progress line is printed this often."""


@chz.chz
class RunOptions:
    """Where it runs and what it leaves behind; none of this changes the cell's identity.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    results: str = chz.field(default="results/runs", doc="address of the tables (folder, s3://, gs://)")
    overwrite: bool = chz.field(default=False, doc="train a cell again that has finished, and replace its rows")
    device: Device = chz.field(default="auto", doc="what it trains on; auto: a GPU where torch finds one, or the CPU")
    num_threads: int | None = chz.field(
        default=None, doc="CPU threads; unset: 1 for the embedded model, else as many as torch takes"
    )
    wandb_project: str | None = chz.field(default=None, doc="logs the run there; unset: no wandb")

    @chz.validate
    def _check(self) -> None:
        if not self.results:
            raise ValueError("results must name a folder or an address, got nothing")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {self.num_threads}")
        check_project(self.wandb_project)


class SingleRun:
    """One cell and its tables.

    Args:
        config: the cell.
        options: where it runs.
        console: where messages and the progress line go.

    Raises:
        ValueError: the tables can't be written, the device is missing, the model can't be read, or it is not calibrated
            for the cell's prompt.
    """

    def __init__(self, config: TrainConfig, options: RunOptions, console: "Console") -> None:
        from memrl.tables.store import TableStore

        self._config, self._options, self._console = config, options, console
        self._store = TableStore(options.results)
        with ExitStack() as writing:
            writing.enter_context(self._store.open_for_writing(config.cell_id))
            for line in self._store.damaged:
                self._print(line)
            self._earlier = None if options.overwrite else self._find_finished_row()
            if self._earlier is not None:
                return
            with console.status("loading the model"):
                self._wandb = WandbLog(options.wandb_project, options.results) if options.wandb_project else None
                self._pack = self._load_pack()
            (self._cell,) = self._pack.cells
            self._curves: list[pa.Table] = []
            # What an earlier run of this cell left: it failed, was interrupted, or is to be replaced.
            self._store.drop_cells([config.cell_id])
            self._writing = writing.pop_all()

    def train(self) -> int:
        """Trains the cell to its end, writes its rows, and prints its result.

        A cell that had finished before is not trained again: its stored result is printed. Ctrl-C keeps the curves so
        far, but leaves no row, so that the cell does not count as finished.

        Returns:
            The exit code: 0, 1 where the cell failed, 130 on Ctrl-C.
        """
        if self._earlier is not None:
            self._print("This cell has finished before; overwrite=True trains it again.")
            return self._conclude(self._earlier)
        if self._wandb is not None and self._wandb.notice:
            self._print(self._wandb.notice)
        try:
            row = self._train_to_end()
        except KeyboardInterrupt:
            self._write()
            told = f"Stopped after {self._cell.updates:,} updates ({self._cell.episodes:,} episodes)"
            where = self._store.table_address("curves")
            self._print(f"{told}; the curves so far are in {where}. The same command starts this cell afresh.")
            return INTERRUPTED
        finally:
            self._writing.close()
            if self._backend is not None:
                self._backend.close()
        if self._wandb is not None:
            self._log_to(self._wandb, row)
        return self._conclude(row)

    def _load_pack(self) -> "Pack":
        import torch

        from memrl.learning.pack import Pack

        # Adam's moments fade into denormal numbers, on which CPUs are many times slower.
        torch.set_flush_denormal(True)
        threads = self._options.num_threads or (1 if self._config.model == "embedded" else None)
        if threads is not None:
            torch.set_num_threads(threads)
        device = self._options.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device must be cpu or auto where torch finds no GPU, got cuda")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._backend = self._start_engine(device) if self._config.rollout == "vllm" else None
        return Pack([self._config], device=device, backend=self._backend)

    def _start_engine(self, device: str) -> "VLLMEngine":
        """An engine in this very process; on a GPU it shares it with the learner, and sleeps while that updates."""
        from memrl.policy.model_folder import check_model_folder
        from memrl.rollout.vllm_actor import EngineOptions, VLLMEngine

        return VLLMEngine(
            EngineOptions(
                model=check_model_folder(self._config.model),
                dtype=self._config.dtype,
                max_loras=1,
                max_lora_rank=self._config.lora_rank,
                colocated=device == "cuda",
            )
        )

    def _find_finished_row(self) -> dict[str, Any] | None:
        if self._config.cell_id not in self._store.finished_cell_ids():
            return None
        import pyarrow.compute as pc

        rows = self._store.read("episodes_to_memorize")
        mine = pc.and_(pc.equal(rows["cell_id"], self._config.cell_id), pc.equal(rows["agent"], "lora"))
        return rows.filter(mine).to_pylist()[0]

    def _train_to_end(self) -> dict[str, Any]:
        """Trains until the cell has ended, writing as it goes; returns the cell's row."""
        written, rows = time.monotonic(), []
        with _ProgressLine(self._cell, self._console) as line:
            while not self._pack.finished:
                try:
                    self._pack.update()
                except Exception as error:
                    traceback.print_exc()
                    self._pack.fail(f"{type(error).__name__}: {' '.join(str(error).split())}")
                line.tick()
                if self._pack.finished or time.monotonic() - written >= _WRITE_SECONDS:
                    rows += self._write()
                    written = time.monotonic()
        (row,) = rows
        return row

    def _write(self) -> list[dict[str, Any]]:
        """Writes what was recorded since the last call, curves first: a cell counts as finished by its row."""
        rows, curves = self._pack.drain()
        self._curves.append(curves)
        self._store.append("curves", curves)
        if rows:
            self._store.append("episodes_to_memorize", rows)
        return rows

    def _log_to(self, log: WandbLog, row: Mapping[str, Any]) -> None:
        import pyarrow as pa

        log.log_cells([row], pa.concat_tables(self._curves))
        log.close()

    def _conclude(self, row: Mapping[str, Any]) -> int:
        self._print(f"{describe_result(row)} | tables in {self._options.results}")
        return FAILED if row["status"] == "failed" else 0

    def _print(self, text: str) -> None:
        """Prints text that may be copied or searched for: unwrapped, and with its brackets as they are."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


class _ProgressLine:
    """One live line while a cell trains; without a terminal a line every ten seconds."""

    def __init__(self, cell: "CellProgress", console: "Console") -> None:
        from rich.live import Live
        from rich.text import Text

        def render() -> Text:
            return Text(describe_progress(cell), no_wrap=True, overflow="ellipsis")

        self._cell, self._console = cell, console
        self._live = Live(get_renderable=render, console=console, refresh_per_second=4, transient=True)
        self._last_print = time.monotonic()

    def __enter__(self) -> "_ProgressLine":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def tick(self) -> None:
        """Prints the line if it is time to and there is no terminal to draw on."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_print >= _PLAIN_SECONDS:
            self._console.print(describe_progress(self._cell), soft_wrap=True, markup=False, highlight=False)
            self._last_print = now


def describe_progress(cell: "CellProgress") -> str:
    """The live line's text: updates, episodes, bits, and P(secret)."""
    config, signal_bits = cell.config, math.log2(cell.config.N)
    parts = [
        f"{config.channel_name} N={config.N}",
        f"{cell.updates:,}/{config.episode_budget // config.episodes_per_update:,} updates",
        f"{cell.episodes:,} {_unit(config.algorithm)}",
    ]
    if cell.updates:
        parts += [
            f"absorbed {cell.absorbed_bits:.2f} of {signal_bits:.2f} bits",
            f"observed {cell.observed_bits:.2f}",
            f"P(secret) {2 ** (cell.absorbed_bits - signal_bits):.3g}",
        ]
    return "  ".join(parts)


def describe_result(row: Mapping[str, Any]) -> str:
    """The result line of a cell, in bits, from its row of episodes_to_memorize.

    E50 and E90 of a run that ended first are written as `> episodes used`: censored, not reached.
    """
    unit = _unit(row["algorithm"])
    if row["status"] == "failed":
        return f"failed after {row['episodes'] or 0:,} {unit}: {row['error']}"
    known = f"absorbed {row['absorbed_bits']:.2f} of {row['signal_bits']:.2f} bits, observed {row['observed_bits']:.2f}"
    reached = ", ".join(f"{name.upper()} {_format_reach(row, name)}" for name in ("e50", "e90"))
    verdict = "memorized" if row["status"] == "memorized" else f"not memorized within {row['updates']:,} updates"
    return " | ".join(
        [
            f"{verdict}: {reached} {unit}",
            known,
            f"{row['bits_per_episode']:.3g} bits per {unit[:-1]}, capacity {_format_capacity(row)}",
        ]
    )


def _unit(algorithm: str) -> str:
    return "examples" if algorithm == "sft" else "episodes"


def _format_reach(row: Mapping[str, Any], name: str) -> str:
    return f"> {row[name]:,}" if row[f"{name}_censored"] else f"{row[name]:,}"


def _format_capacity(row: Mapping[str, Any]) -> str:
    nominal = row["capacity_nominal_bits"]
    shown = "unbounded" if math.isinf(nominal) else f"{nominal:.3g}"
    return f"{shown} nominal, {row['capacity_uniform_bits']:.3g} at a uniform guess"


def refuse_unused(config: TrainConfig, words: Mapping[str, str]) -> None:
    """Refuses a field that was given although the cell does not use it, such as reward_bins of a binary reward.

    Raises:
        ValueError: there is such a field.
    """
    used = config.identity()
    for name, text in words.items():
        if name in used and used[name] is None and getattr(config, name) is not None:
            raise ValueError(
                f"{name} must be left out where channel {config.channel_name} has no use for it, got {text}"
            )
