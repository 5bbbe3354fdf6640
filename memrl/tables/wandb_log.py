"""wandb: one run a finished cell, its curves in bits against episodes, and its row as the summary.

wandb itself is imported only where a project is given.
"""

import math
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from memrl.config import TrainConfig
from memrl.errors import StartError
from memrl.tables.places import local_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from memrl.tables.schema import Row

_FORBIDDEN = r"/\#?%:"
"""Characters that wandb allows in no project's name."""

_LONGEST = {"job_type": 64, "group": 64, "name": 128}
"""Characters that wandb's server takes; offline runs with more could not be sent."""

_REACH_SECONDS = 3.0
_STEP_METRIC = "episodes"


def check_project(project: str | None) -> None:
    """Refuses a name that wandb would refuse.

    Raises:
        ValueError: the name is empty, too long, or has a forbidden character.
    """
    if project is None:
        return
    if not 0 < len(project) <= 128 or set(project) & set(_FORBIDDEN):
        raise ValueError(f"wandb_project must be 1 to 128 characters without any of {_FORBIDDEN}, got {project!r}")


class WandbLog:
    """Logs finished cells to a project: online where wandb has a key and a network, else to files.

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
        import wandb

        check_project(project)
        self._wandb = wandb
        self._project = project
        self._folder = local_folder(results)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._logged = self._folder / "wandb" / f"{project}.logged"
        self.group = self._folder.absolute().name[: _LONGEST["group"]]
        try:
            chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode
        except Exception as error:
            advice = "mend WANDB_MODE and its like, or leave wandb_project out"
            raise StartError(f"wandb can't start ({error}): {advice}") from error
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
        points = _group_points(curves, {row["cell_id"] for row in missing})
        self._logged.parent.mkdir(exist_ok=True)
        for number, row in enumerate(missing):
            on_progress(number, len(missing))
            self._log_cell(row, points.get(row["cell_id"], []))
            with self._logged.open("a", encoding="utf-8") as file:
                file.write(f"{_name_run(row)}\n")

    def close(self) -> None:
        """Waits until all is written or sent, and ends wandb's own process."""
        self._wandb.teardown()

    def _log_cell(self, row: "Row", points: "Sequence[Row]") -> None:
        name = f"{row['channel']} N={row['N']} rank={row['lora_rank']} lr={row['learning_rate']} seed={row['seed']}"
        run = self._wandb.init(
            project=self._project,
            group=self.group,
            job_type=row["channel"][: _LONGEST["job_type"]],
            name=name[: _LONGEST["name"]],
            config={field: row[field] for field in ("cell_id", *TrainConfig.__annotations__) if field in row},
            dir=str(self._folder),
            mode=self._mode,
            reinit="create_new",
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        # The row is the summary, so curves leave it alone.
        run.define_metric(_STEP_METRIC, summary="none")
        run.define_metric("*", step_metric=_STEP_METRIC, summary="none")
        for point in points:
            run.log(_drop_missing(point), step=point["update"])
        run.summary.update(_drop_missing(row))
        run.finish(exit_code=int(row["status"] == "failed"))

    def _find_what_is_missing(self) -> str:
        """Why runs can't go online: no key, or no network; empty where they can."""
        if not self._wandb.login(prompt=False, verify=False):
            return "no key (wandb login)"
        server = self._wandb.setup().settings.base_url
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


def _group_points(curves: "pa.Table", cell_ids: set[str]) -> "dict[str, list[Row]]":
    """The curve rows of some cells, by cell, in the order of their updates."""
    points: dict[str, list[Row]] = {cell_id: [] for cell_id in cell_ids}
    for point in curves.to_pylist():
        if point["cell_id"] in points:
            points[point.pop("cell_id")].append(point)
    for mine in points.values():
        mine.sort(key=lambda point: point["update"])
    return points


def _name_run(row: "Row") -> str:
    """Names what a run shows: a cell that is trained again makes another run."""
    return f"{row['cell_id']}@{row['created'].isoformat()}"


def _drop_missing(values: "Row") -> "Row":
    """What was measured, without None and NaN; times as text."""
    known = {key: v for key, v in values.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
    return {key: v.isoformat() if isinstance(v, datetime) else v for key, v in known.items()}
