"""A writer that is killed between any two of its changes to the disk: what was written stays, once."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from table_rows import append_cells, cell_row

from memrl.tables import folder as folder_module
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

CHANGES = ("open", "fsync", "replace", "unlink")


class KilledError(BaseException):
    """No handler of the writer's catches it, and from it on nothing of the writer's reaches the disk."""


def kill_after(num_changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = itertools.count(num_changes, -1)

    def let_pass_or_die(change: Callable) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(left) <= 0:
                raise KilledError
            return change(*arguments, **options)

        return wrapped

    for name in CHANGES:
        monkeypatch.setattr(os, name, let_pass_or_die(getattr(os, name)))


def launch(folder: Path, acknowledged: set[str]) -> None:
    """Drops and writes the cells that have not finished, as a sweep does, and compacts."""
    store = TableStore(str(folder))
    with store.open_for_writing():
        left = sorted(set("abcdef") - store.finished_cell_ids())
        store.drop_cells(left)
        for cell_id in left:
            append_cells(store, cell_row(cell_id))
            acknowledged.add(cell_id)
        store.compact()


def prepare(folder: Path) -> None:
    """What two launches before have left: three finished cells, and one that failed."""
    for rows in ("ab", "c"):
        store = TableStore(str(folder))
        store.create()
        append_cells(store, *(cell_row(cell_id) for cell_id in rows))
    append_cells(store, cell_row("f", "failed"))


@pytest.mark.parametrize("num_changes", range(0, 68, 2))
def test_what_was_written_stays_once_and_the_next_launch_goes_on(tmp_path, monkeypatch, num_changes):
    prepare(tmp_path)
    acknowledged = {"a", "b", "c"}
    with monkeypatch.context() as patch:
        # The launch that is killed compacts, and the one that follows does not.
        patch.setattr(folder_module, "MOST_SMALL_PARTS", 1)
        kill_after(num_changes, patch)
        try:
            launch(tmp_path, acknowledged)
        except KilledError:
            pass
        else:
            assert acknowledged == set("abcdef")
    assert acknowledged <= TableStore(str(tmp_path)).finished_cell_ids()
    launch(tmp_path, set())
    for table, num_rows in ((EPISODES_TO_MEMORIZE, 6), (CURVES, 12)):
        assert len(pd.read_parquet(tmp_path / table)) == num_rows
        assert [path.name for path in (tmp_path / table).iterdir() if path.suffix == ".tmp"] == []
    assert not (tmp_path / "damaged").exists()


def test_the_last_of_these_kills_comes_too_late(tmp_path, monkeypatch):
    """Or the range above would leave moments out."""
    monkeypatch.setattr(folder_module, "MOST_SMALL_PARTS", 1)
    prepare(tmp_path)
    kill_after(68, monkeypatch)
    launch(tmp_path, set())
