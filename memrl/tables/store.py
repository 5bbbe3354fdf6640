"""TableStore: the one writer of results, and a reader that survives what happens while a sweep runs."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from memrl.errors import WriteError, tell_error
from memrl.suggest import did_you_mean
from memrl.tables.conform import conform
from memrl.tables.files import find_filesystem, is_local, read_file, replace_file
from memrl.tables.folder import TableFolder, sort_newest
from memrl.tables.lock import hold_folder, hold_rewriting
from memrl.tables.parts import DamagedPartError
from memrl.tables.schema import AGENTS, CURVES, EPISODES_TO_MEMORIZE, SCHEMAS, Row
from memrl.task.result import DIVERGED

DAMAGED = "damaged"
"""The folder beside the tables where a writer puts what it finds there and can't read."""

_ENDED = ("memorized", "budget_spent")


class TableStore:
    """The tables of one sweep, at any address that pyarrow or fsspec knows.

    A table is a folder of parquet part files that readers may open at any moment. A store writes into one growing part
    a table: every `append` replaces that file as a whole (locally by rename, on an object store by one put), so no
    reader ever sees half a file, a row twice, or a file that vanishes under it, and a sweep leaves few files.

    Who writes does so within `open_for_writing`, which keeps other writers out. There a part that can't be read is set
    aside and noted in `damaged`; who only reads gets a DamagedPartError.

    Args:
        address: a folder, or an address such as `s3://bucket/folder`, `gs://bucket/folder` or `memory://folder`.

    Attributes:
        damaged: one line for each part that was set aside: where it lay, what is wrong with it, where it lies now.

    Raises:
        ValueError: no filesystem is known for the address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.damaged: list[str] = []
        self._filesystem, self._root = find_filesystem(address)
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
        self._is_writing = False
        self._renew_lock: Callable[[], None] = _do_nothing
        self._folders = {
            table: TableFolder(table, self._filesystem, f"{self._root}/{table}", self._run, self._meet_damage)
            for table in SCHEMAS
        }

    def table_address(self, table: str) -> str:
        """The folder of a table, as pandas takes it."""
        _check_table(table)
        return f"{self.address.rstrip('/')}/{table}"

    @contextmanager
    def open_for_writing(self, cell_id: str | None = None) -> Iterator[None]:
        """Makes the tables, keeps other writers out while the block runs, and mends what earlier ones left.

        Parts that can't be read are set aside. Half-written files go, parts of an older schema version are written anew
        as of this one, and rows that are there twice become one. The lock goes with the process, however that ends; an
        object store has no locks.

        Args:
            cell_id: the one cell that will be written: writers of other single cells may come in too, and all mending
                but setting aside is left to a writer of everything. None: nobody else.

        Raises:
            ValueError: the address can't be written, another process writes there, or a later version of memrl has.
            WriteError: what earlier writers left can't be mended.
        """
        self.create()
        with self._lock(cell_id) as self._renew_lock:
            self._is_writing = True
            try:
                with self._told_in_one_line():
                    if cell_id is None:
                        self._move_older_agents()
                    for folder in self._folders.values():
                        folder.mend(alone=cell_id is None)
                yield
            finally:
                self._is_writing, self._renew_lock = False, _do_nothing

    def create(self) -> None:
        """Makes the folders, with an empty part in each, so that even a reader before the first row sees the columns.

        Raises:
            ValueError: the address can't be written.
        """
        try:
            for table, folder in self._folders.items():
                if not folder.list_parts():
                    folder.grow(pa.Table.from_batches([], SCHEMAS[table]))
        except OSError as error:
            raise ValueError(
                f"results must be a writable address, got {self.address!r} ({tell_error(error)})"
            ) from error

    def append(self, table: str, rows: Sequence[Row] | pa.Table) -> list[Row]:
        """Adds rows; on return they are written, and a reader sees all of them or none.

        A row of episodes_to_memorize with a value that its column can't hold is written without it, as a failed one.

        Args:
            table: episodes_to_memorize, curves or agents.
            rows: dicts or a pyarrow table, with exactly the declared columns.

        Returns:
            The rows that failed so, as they were written.

        Raises:
            ValueError: a column is missing, unknown or of another type, or a row lacks its key.
            WriteError: the rows can't be written now; they will be with the next append. Or another process has come in
                where somebody removed the lock's file: they never will be.
        """
        _check_table(table)
        more, failed = conform(table, rows)
        with self._told_in_one_line():
            if more.num_rows:
                self._folders[table].grow(more)
        return failed

    def write_text(self, name: str, text: str) -> None:
        """Writes a file beside the tables.

        Args:
            name: its path below the address, with forward slashes.
            text: what it holds.

        Raises:
            ValueError: the path leads out of the address.
            WriteError: it can't be written.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"name must lie below the results, got {name!r}")
        with self._told_in_one_line():
            replace_file(self._filesystem, f"{self._root}/{name}", text.encode())

    def read_text(self, name: str) -> str | None:
        """What `write_text` wrote under a name; None where there is no such file.

        Raises:
            ValueError: the file can't be read.
        """
        try:
            return read_file(self._filesystem, f"{self._root}/{name}").decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"results must be readable, got {self.address!r} ({tell_error(error)})") from error

    def list_parts(self, table: str) -> list[str]:
        """Paths of a table's part files, oldest first."""
        _check_table(table)
        return self._folders[table].list_parts()

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a table, sorted by its key; of rows with one key, the newest.

        Args:
            table: episodes_to_memorize, curves or agents.
            columns: the columns to read; None reads all.

        Raises:
            DamagedPartError: a part can't be read, and this store does not write, so that it may not set it aside.
            ValueError: the address can't be read, or a later version of memrl wrote a part.
        """
        _check_table(table)
        folder = self._folders[table]
        names = list(columns) if columns is not None else folder.schema.names
        try:
            rows = folder.read(list(dict.fromkeys([*names, *folder.key])))
            if table == AGENTS:
                older = self._folders[EPISODES_TO_MEMORIZE].read_older_agents().select(rows.column_names)
                rows = sort_newest(pa.concat_tables([older, rows]), folder.key)
            return rows.select(names)
        except OSError as error:
            raise ValueError(f"results must be readable, got {self.address!r} ({tell_error(error)})") from error

    def finished_cell_ids(self, *, stopped: bool = False) -> set[str]:
        """The cells that were trained to their end (memorized or with their budget spent) and have all their curves.

        Args:
            stopped: whether those count, too, that were stopped since their learning rate could no longer be chosen.
        """
        ended_as = (*_ENDED, "stopped") if stopped else _ENDED
        names = ["cell_id", "agent", "status", "updates", "updates_per_batch", "num_keys"]
        rows = self.read(EPISODES_TO_MEMORIZE, names).to_pylist()
        # By cell and update; `group_by` would do, and load pandas.
        curves = self.read(CURVES, ["cell_id", "update"])
        counted, held, end = curves["cell_id"].cast(pa.string()).value_counts().to_pylist(), {}, 0
        for row in counted:
            end += row["counts"]
            held[row["values"]] = (row["counts"], curves["update"][end - 1].as_py())
        ended = [row for row in rows if row["agent"] == "lora" and row["status"] in ended_as]
        return {row["cell_id"] for row in ended if _is_whole(row, *held.get(row["cell_id"], (0, -1)))}

    def diverged_cell_ids(self) -> set[str]:
        """The cells that failed since their policies diverged: they would again."""
        rows = self.read(EPISODES_TO_MEMORIZE, ["cell_id", "status", "error"]).to_pylist()
        failed = [row for row in rows if row["status"] == "failed"]
        return {row["cell_id"] for row in failed if (row["error"] or "").startswith(DIVERGED)}

    def drop_cells(self, cell_ids: Iterable[str]) -> None:
        """Removes the rows that trained policies left for some cells, so that these can be trained again.

        Parts are rewritten in place, within `open_for_writing` of these cells.

        Raises:
            WriteError: a part can't be rewritten; it stays as it was.
        """
        dropped = list(cell_ids)
        if not dropped:
            return
        turn = hold_rewriting(Path(self._root)) if is_local(self._filesystem) else nullcontext()
        with turn, self._told_in_one_line():
            self._move_older_agents()
            for folder in self._folders.values():
                folder.drop_rows(dropped)

    def compact(self) -> None:
        """Merges a table's part files into few where many sweeps have left many small ones; nobody else may write.

        The merged file appears at once and the small ones go right after it. A plain reader may meet both within these
        milliseconds; `read` counts no row twice even then.

        Raises:
            WriteError: a merged part can't be written; the small ones stay.
        """
        with self._told_in_one_line():
            for folder in self._folders.values():
                folder.compact()

    def _move_older_agents(self) -> None:
        """Writes rows of agents that stand in older parts of episodes_to_memorize where they belong.

        What rewrites those parts afterwards leaves the rows out; until then `read` counts none twice.
        """
        older = self._folders[EPISODES_TO_MEMORIZE].read_older_agents()
        if older.num_rows:
            self._folders[AGENTS].grow(older.select(SCHEMAS[AGENTS].names))

    def _lock(self, cell_id: str | None) -> AbstractContextManager[Callable[[], None]]:
        return hold_folder(Path(self._root), cell_id) if is_local(self._filesystem) else nullcontext(_do_nothing)

    @contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        try:
            self._renew_lock()
        except ValueError as error:  # somebody has removed the lock's file, and somebody else has come in
            raise WriteError(str(error)) from error
        except OSError:
            pass  # the write itself tells what is wrong with the folder
        try:
            yield
        except OSError as error:
            reason = error.strerror or tell_error(error)
            kept = "what was written is whole, and the same command goes on from there"
            raise WriteError(f"results must stay writable, got {self.address!r} ({reason}); {kept}") from error

    def _meet_damage(self, part: str, error: DamagedPartError) -> None:
        if not self._is_writing:
            raise error
        target = f"{self._root}/{DAMAGED}/{self._run}/{part.removeprefix(f'{self._root}/')}"
        self._filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        self._filesystem.move(part, target)
        self.damaged.append(f"{error}; set aside as {target}")


def _do_nothing() -> None:
    pass


def _check_table(table: str) -> None:
    if table not in SCHEMAS:
        raise ValueError(f"unknown table {table!r}{did_you_mean(table, SCHEMAS)}")


def _is_whole(row: Row, num_curve_rows: int, last_update: int) -> bool:
    """Whether a cell has all its curves: a row for each batch, and one for the state after the last.

    Many keyed secrets are measured on a schedule, so that the last row alone must be there.
    """
    updates, keyed = row["updates"] or 0, row["num_keys"] is not None
    return last_update >= updates and (keyed or num_curve_rows > updates // (row["updates_per_batch"] or 1))
