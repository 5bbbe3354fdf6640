"""What wandb and TensorBoard have in common for a sweep: its progress, and a curve a condition."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from memrl.tables.schema import Row

Values = Mapping[str, float]
"""What is drawn, by its name."""


class CurveLog(Protocol):
    """Where a sweep shows itself while it runs.

    Attributes:
        notice: what the user should be told once, one line; empty: nothing.
    """

    notice: str

    def log_progress(self, seconds: float, values: Values) -> None:
        """Shows how far the sweep is, so many seconds after its start."""
        ...

    def log_condition(self, condition: str, episodes: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
        """Shows curves of a condition whose cells have ended.

        Args:
            condition: its name.
            episodes: where the curves are measured.
            curves: of each quantity, a value for each of these.
        """
        ...

    def log_cells(
        self, rows: "Sequence[Row]", curves: "pa.Table", on_progress: Callable[[int, int], None] = ...
    ) -> None:
        """Shows each of these cells that it has not shown yet, as a run of its own.

        Args:
            rows: of episodes_to_memorize.
            curves: of the same cells, and of others perhaps.
            on_progress: told before each run how many of the missing ones are made, and how many there are.
        """
        ...

    def close(self) -> None:
        """Waits until all is written or sent."""
        ...


def group_curves(curves: "pa.Table", cell_ids: Collection[str]) -> "dict[str, list[Row]]":
    """The curve rows of some cells, by cell, in the order of their updates."""
    points: dict[str, list[Row]] = {cell_id: [] for cell_id in cell_ids}
    for point in curves.to_pylist():
        if point["cell_id"] in points:
            points[point.pop("cell_id")].append(point)
    for mine in points.values():
        mine.sort(key=lambda point: point["update"])
    return points
