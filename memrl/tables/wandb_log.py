"""wandb: a run for a sweep, with its progress and a curve a condition; a run for a cell, with its row as the summary.

This module is imported only where a log is asked for.
"""

import math
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import wandb

from memrl.config import TrainConfig
from memrl.errors import StartError, tell_error
from memrl.tables.curve_log import Values, group_curves
from memrl.tables.places import local_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from memrl.tables.schema import Row

_LONGEST = {"job_type": 64, "group": 64, "name": 128}
"""Characters that wandb's server takes; offline runs with more could not be sent."""

_REACH_SECONDS = 3.0
_STEP_METRIC, _CLOCK_METRIC = "episodes", "seconds"


class WandbLog:
    """Logs a sweep, or finished cells, to a project: online where wandb has a key and a network, else to files.

    The user's own settings (WANDB_MODE, WANDB_BASE_URL, ...) come first.

    Args:
        project: the wandb project.
        results: address of the tables; the files of runs lie in its folder `wandb`. Where the tables are not on this
            machine, in `results/<last part of the address>/wandb` here.

    Attributes:
        group: the wandb group of the runs, so that a sweep stands together: the last part of `results`.
        notice: what the user should be told once, one line; empty where there is nothing to tell.

    Raises:
        StartError: wandb can't start, such as where a setting of its own makes no sense.
    """

    def __init__(self, project: str, results: str) -> None:
        self._project = project
        self._folder = local_folder(results)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep: Any = None
        self._logged = self._folder / "wandb" / f"{project}.logged"
        self.group = self._folder.absolute().name[: _LONGEST["group"]]
        try:
            chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode
        except Exception as error:
            advice = "mend WANDB_MODE and its like, or leave wandb_project out"
            raise StartError(f"wandb can't start ({tell_error(error)}): {advice}") from error
        missing = "" if chosen != "online" else self._find_what_is_missing()
        self._mode: Any = "offline" if missing else chosen
        self.notice = self._describe(missing) if missing else ""

    def log_cells(
        self,
        rows: "Sequence[Row]",
        curves: "pa.Table",
        on_progress: Callable[[int, int], None] = lambda done, missing: None,
    ) -> None:
        """Writes one run for each row that has none yet in this project.

        Which have is noted in `wandb/PROJECT.logged` beside the tables, run by run, so that a later call makes up for
        what an ended one has not come to.

        Args:
            rows: of episodes_to_memorize; a failed cell makes a failed run.
            curves: of the same cells, and of others perhaps.
            on_progress: told before each run how many of the missing ones are made, and how many there are.
        """
        if self._mode == "disabled":
            return
        logged = set(self._logged.read_text("utf-8").split()) if self._logged.exists() else set()
        missing = [row for row in rows if _name_run(row) not in logged]
        points = group_curves(curves, {row["cell_id"] for row in missing})
        self._logged.parent.mkdir(exist_ok=True)
        for number, row in enumerate(missing):
            on_progress(number, len(missing))
            self._log_cell(row, points[row["cell_id"]])
            with self._logged.open("a", encoding="utf-8") as file:
                file.write(f"{_name_run(row)}\n")

    def log_progress(self, seconds: float, values: Values) -> None:
        """See CurveLog.log_progress."""
        if self._mode != "disabled":
            told = {f"progress/{name}": value for name, value in values.items()}
            self._open_sweep().log({_CLOCK_METRIC: seconds, **told})

    def log_condition(self, condition: str, episodes: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
        """See CurveLog.log_condition."""
        if self._mode == "disabled":
            return
        run = self._open_sweep()
        for at, *values in zip(episodes, *curves.values(), strict=True):
            run.log({_STEP_METRIC: at, **{f"{name}/{condition}": v for name, v in zip(curves, values, strict=True)}})

    def close(self) -> None:
        """Waits until all is written or sent, and ends wandb's own process."""
        if self._sweep is not None:
            self._sweep.finish()
            self._sweep = None
        wandb.teardown()

    def _open_sweep(self) -> Any:
        """The run of the sweep itself, which starts when there is something to log."""
        if self._sweep is None:
            self._sweep = self._start_run(self.group, "sweep", {})
            self._sweep.define_metric("progress/*", step_metric=_CLOCK_METRIC)
            for name in ("absorbed_bits/*", "absorbed_bits_lower/*", "absorbed_bits_upper/*", "observed_bits/*"):
                self._sweep.define_metric(name, step_metric=_STEP_METRIC)
        return self._sweep

    def _start_run(self, name: str, job_type: str, config: dict[str, object]) -> Any:
        return wandb.init(
            project=self._project,
            group=self.group,
            job_type=job_type[: _LONGEST["job_type"]],
            name=name[: _LONGEST["name"]],
            config=config,
            dir=str(self._folder),
            mode=self._mode,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def _log_cell(self, row: "Row", points: "Sequence[Row]") -> None:
        name = f"{row['channel']} N={row['N']} rank={row['lora_rank']} lr={row['learning_rate']} seed={row['seed']}"
        config = {field: row[field] for field in ("cell_id", *TrainConfig.__annotations__) if field in row}
        run = self._start_run(name, row["channel"], config)
        # The row is the summary, so curves leave it alone.
        run.define_metric(_STEP_METRIC, summary="none")
        run.define_metric("*", step_metric=_STEP_METRIC, summary="none")
        for point in points:
            run.log(_drop_missing(point), step=point["update"])
        run.summary.update(_drop_missing(row))
        run.finish(exit_code=int(row["status"] == "failed"))

    def _find_what_is_missing(self) -> str:
        """Why runs can't go online: no key, or no network; empty where they can."""
        if not wandb.login(prompt=False, verify=False):
            return "no key (wandb login)"
        server = wandb.setup().settings.base_url
        try:
            urllib.request.urlopen(server, timeout=_REACH_SECONDS).close()
        except urllib.error.HTTPError:
            return ""  # an answer, if not a page
        except OSError:
            return f"no way to {server}"
        return ""

    def _describe(self, missing: str) -> str:
        runs = self._folder / "wandb"
        send = f"wandb sync {shlex.quote(str(runs))}/offline-run-*"
        return f"wandb: {missing}, so runs are logged offline in {runs}; send them by: {send}"


def _name_run(row: "Row") -> str:
    """Names what a run shows: a cell that is trained again makes another run."""
    return f"{row['cell_id']}@{row['created'].isoformat()}"


def _drop_missing(values: "Row") -> "Row":
    """What was measured, without None and NaN; times as text."""
    known = {key: v for key, v in values.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
    return {key: v.isoformat() if isinstance(v, datetime) else v for key, v in known.items()}
