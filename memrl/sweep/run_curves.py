"""Curves of single runs, read at the same numbers of episodes."""

import numpy as np
import pyarrow as pa

PLACES = np.unique([0, *np.round(np.geomspace(1, 4096, 40)).astype(np.int64)])
"""Episodes at which curves are read."""


def split_runs(curves: pa.Table, name: str = "absorbed_bits") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Episodes and a column of each run, in the order of its rows."""
    frame = curves.select(["cell_id", "episodes", name]).to_pandas()
    return {
        str(cell_id): (rows["episodes"].to_numpy(), rows[name].to_numpy(dtype=float))
        for cell_id, rows in frame.groupby("cell_id", observed=True)
    }


def take_at_places(episodes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What a run had come to at each place; after its end it keeps its last value."""
    return values[np.maximum(np.searchsorted(episodes, PLACES, side="right") - 1, 0)]
