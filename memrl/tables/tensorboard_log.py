"""TensorBoard: event files beside the tables, a run for the sweep, for each condition, and on request for each cell.

This module is imported only where a log is asked for.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

from memrl.tables.curve_log import Values, group_curves
from memrl.tables.places import local_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from memrl.tables.schema import Row

_CELL_CURVES = ("absorbed_bits", "observed_bits", "mean_reward", "well_formed", "entropy_bits", "gradient_norm")


class TensorBoardLog:
    """Writes event files; `tensorboard --logdir FOLDER` shows them.

    Runs are folders: `sweep`, `conditions/<condition>` and `cells/<cell_id>`. Curves of conditions and cells are by
    episodes, the sweep's progress by seconds.

    Args:
        results: address of the tables; the files lie in its folder `tensorboard`, or here in results/ for tables
            elsewhere.

    Attributes:
        notice: where the files lie, and how they are shown.
    """

    def __init__(self, results: str) -> None:
        self._folder = local_folder(results) / "tensorboard"
        self.notice = f"TensorBoard: tensorboard --logdir {self._folder}"
        self._sweep: SummaryWriter | None = None

    def log_progress(self, seconds: float, values: Values) -> None:
        """See CurveLog.log_progress."""
        if not values:  # a writer that is given nothing starts its thread as the process ends, which Python refuses
            return
        writer = self._sweep = self._sweep or SummaryWriter(str(self._folder / "sweep"))
        for name, value in values.items():
            writer.add_scalar(f"progress/{name}", value, round(seconds))

    def log_condition(self, condition: str, episodes: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
        """See CurveLog.log_condition."""
        folder = self._folder / "conditions" / re.sub(r"[^\w.=+-]+", "_", condition)
        with SummaryWriter(str(folder)) as writer:
            for name, values in curves.items():
                _add_curve(writer, name, episodes, values)

    def log_cells(
        self,
        rows: "Sequence[Row]",
        curves: "pa.Table",
        on_progress: Callable[[int, int], None] = lambda done, missing: None,
    ) -> None:
        """See CurveLog.log_cells."""
        # A cell that is trained again makes another run.
        names = {row["cell_id"]: f"{row['cell_id']}-{row['created']:%Y%m%dT%H%M%S}" for row in rows}
        folders = {cell_id: self._folder / "cells" / name for cell_id, name in names.items()}
        missing = {cell_id: folder for cell_id, folder in folders.items() if not folder.is_dir()}
        points = group_curves(curves, missing)
        for number, (cell_id, folder) in enumerate(missing.items()):
            on_progress(number, len(missing))
            mine = points[cell_id]
            with SummaryWriter(str(folder)) as writer:
                for name in _CELL_CURVES:
                    _add_curve(writer, name, [point["episodes"] for point in mine], [point[name] for point in mine])

    def close(self) -> None:
        """Writes what is still held."""
        if self._sweep is not None:
            self._sweep.close()
            self._sweep = None


def _add_curve(writer: SummaryWriter, name: str, episodes: Sequence[int], values: Sequence[float | None]) -> None:
    for at, value in zip(episodes, values, strict=True):
        if value is not None and not math.isnan(value):
            writer.add_scalar(name, value, at)
