"""TableStore: the one writer of results, and a reader that survives what happens while a sweep runs."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from memrl.config import did_you_mean
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE, SCHEMAS

KEYS = {CURVES: ("cell_id", "update"), EPISODES_TO_MEMORIZE: ("cell_id", "agent")}
"""The columns that name a row of each table; rows are sorted by them."""

PART_ROWS = 65_536
"""A part file holds no more rows than this, unless one append brings more."""

MOST_SMALL_PARTS = 16
"""`compact` leaves a table alone until it has more than this many part files that are not half full."""

_READ_ATTEMPTS = 5


class TableStore:
    """The tables of one sweep, at any address that pyarrow or fsspec knows.

    A table is a folder of parquet part files that readers may open at any moment. A store writes into one growing part
    a table: every `append` replaces that file as a whole (locally by rename, on an object store by one put), so no
    reader ever sees half a file, a row twice, or a file that vanishes under it, and a sweep leaves few files.

    Args:
        address: a folder, or an address such as `s3://bucket/folder`, `gs://bucket/folder` or `memory://folder`.

    Raises:
        ValueError: no filesystem is known for the address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._filesystem, self._root = _find_filesystem(address)
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
        self._tails = {table: _Tail(run, schema) for table, schema in SCHEMAS.items()}

    def table_address(self, table: str) -> str:
        """The folder of a table, as pandas takes it."""
        _check_table(table)
        return f"{self.address.rstrip('/')}/{table}"

    def create(self) -> None:
        """Makes the folders, with an empty part in each, so that even a reader before the first row sees the columns.

        Raises:
            ValueError: the address can't be written.
        """
        try:
            for table in SCHEMAS:
                if not self._list_parts(table):
                    self._filesystem.create_dir(f"{self._root}/{table}", recursive=True)
                    self._write_tail(table)
        except OSError as error:
            raise ValueError(f"results must be a writable address, got {self.address!r} ({error})") from error

    def append(self, table: str, rows: Sequence[Mapping[str, Any]] | pa.Table) -> None:
        """Adds rows; on return they are written, and a reader sees all of them or none.

        Args:
            table: episodes_to_memorize or curves.
            rows: dicts or a pyarrow table, with exactly the declared columns.

        Raises:
            ValueError: a column is missing, unknown or of another type.
        """
        schema = _check_table(table)
        more = _conform(table, rows, schema)
        tail = self._tails[table]
        if not more.num_rows:
            return
        if tail.rows.num_rows and tail.rows.num_rows + more.num_rows > PART_ROWS:
            tail.begin_next()
        tail.rows = pa.concat_tables([tail.rows, more])
        self._write_tail(table)

    def write_text(self, name: str, text: str) -> None:
        """Writes a file beside the tables.

        Args:
            name: its path below the address, with forward slashes.
            text: what it holds.
        """
        path = f"{self._root}/{name}"
        self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(path) as file:
            file.write(text.encode())

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a table, sorted by its key; of rows with one key, the newest.

        Args:
            table: episodes_to_memorize or curves.
            columns: the columns to read; None reads all.
        """
        schema = _check_table(table)
        names = list(columns) if columns is not None else schema.names
        key = KEYS[table]
        rows = self._read_parts(table, list(dict.fromkeys([*names, *key])))
        return _sort_newest(rows, key).select(names)

    def finished_cell_ids(self) -> set[str]:
        """The cells that were trained to their end: memorized or with their budget spent, but not failed."""
        rows = self.read(EPISODES_TO_MEMORIZE, ["cell_id", "agent", "status"])
        done = (_to_strings(rows["agent"]) == "lora") & (_to_strings(rows["status"]) != "failed")
        return set(_to_strings(rows["cell_id"])[done].tolist())

    def drop_cells(self, cell_ids: Iterable[str]) -> None:
        """Removes the rows that trained policies left for some cells, so that these can be trained again.

        Parts are rewritten in place; the caller holds the lock, so that nobody else writes them.
        """
        dropped = list(cell_ids)
        for table in SCHEMAS if dropped else ():
            for part in self._list_parts(table):
                rows = self._read_part(part)
                gone = np.isin(_to_strings(rows["cell_id"]), dropped)
                if "agent" in rows.column_names:
                    gone &= _to_strings(rows["agent"]) == "lora"
                if gone.any():
                    self._put(part, rows.filter(pa.array(~gone)))

    def compact(self) -> None:
        """Merges a table's part files into few where many sweeps have left many small ones; the caller holds the lock.

        The merged file appears at once and the small ones go right after it. A plain reader may meet both within these
        milliseconds; `read` counts no row twice even then.
        """
        for table in SCHEMAS:
            parts = self._list_parts(table)
            small = {
                part: pq.read_metadata(part, filesystem=self._filesystem).num_rows < PART_ROWS // 2 for part in parts
            }
            if sum(small.values()) <= MOST_SMALL_PARTS:
                continue
            # Neighbours alone are merged, so that newer rows stay in newer parts.
            for is_small, run in groupby(parts, key=small.__getitem__):
                if is_small:
                    self._merge(table, list(run))
            self._tails[table].begin_next()

    def _merge(self, table: str, parts: list[str]) -> None:
        rows = pa.concat_tables([self._read_part(part) for part in parts])
        self._put(parts[-1], _sort_newest(rows, KEYS[table]))
        for part in parts[:-1]:
            self._filesystem.delete_file(part)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second sweep from writing the same folder; does nothing on an object store, which has no locks.

        The lock goes with the process, however that ends.

        Raises:
            ValueError: another sweep holds it.
        """
        if not isinstance(self._filesystem, fs.LocalFileSystem):
            yield
            return
        import fcntl

        with open(Path(self._root, ".lock"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"results must be free, got {self.address!r}, which a running sweep writes") from None
            yield

    def _read_parts(self, table: str, columns: list[str]) -> pa.Table:
        empty = _empty(SCHEMAS[table]).select(columns)
        for _ in range(_READ_ATTEMPTS - 1):
            with suppress(FileNotFoundError):
                # A compaction may take parts away after they were listed; then the merged one is there.
                return pa.concat_tables([empty, *(self._read_part(part, columns) for part in self._list_parts(table))])
        return pa.concat_tables([empty, *(self._read_part(part, columns) for part in self._list_parts(table))])

    def _read_part(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with self._filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).read(columns)

    def _list_parts(self, table: str) -> list[str]:
        """Paths of the part files, oldest first."""
        selector = fs.FileSelector(f"{self._root}/{table}", allow_not_found=True)
        files = [info.path for info in self._filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        return sorted(path for path in files if path.endswith(".parquet") and _is_visible(path))

    def _write_tail(self, table: str) -> None:
        tail = self._tails[table]
        tail.rows = _sort_newest(tail.rows, KEYS[table])
        self._put(f"{self._root}/{table}/{tail.name}", tail.rows)

    def _put(self, path: str, rows: pa.Table) -> None:
        if not isinstance(self._filesystem, fs.LocalFileSystem):
            self._write_file(path, rows)
            return
        folder, _, name = path.rpartition("/")
        hidden = f"{folder}/.{name}.tmp"
        self._write_file(hidden, rows)
        Path(hidden).replace(path)

    def _write_file(self, path: str, rows: pa.Table) -> None:
        floats = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
        options: dict[str, Any] = {
            "compression": "zstd",
            "use_dictionary": [name for name in rows.column_names if name not in floats],
            "use_byte_stream_split": floats,
        }
        with self._filesystem.open_output_stream(path) as file:
            pq.write_table(rows, file, **options)


class _Tail:
    """The part file that a store is filling, and its rows."""

    def __init__(self, run: str, schema: pa.Schema) -> None:
        self._run, self._schema, self._number = run, schema, 0
        self.rows = _empty(schema)

    @property
    def name(self) -> str:
        """The file's name; names sort by time."""
        return f"part-{self._run}-{self._number:05d}.parquet"

    def begin_next(self) -> None:
        """Goes on to a new, empty part."""
        self.rows, self._number = _empty(self._schema), self._number + 1


def _find_filesystem(address: str) -> tuple[fs.FileSystem, str]:
    scheme, separator, _ = address.partition("://")
    if not separator:
        return fs.LocalFileSystem(), str(Path(address).expanduser().absolute())
    try:
        if scheme in ("file", "s3", "gs", "gcs", "hdfs", "abfs"):
            filesystem, root = fs.FileSystem.from_uri(address)
        else:
            import fsspec

            handler, root = fsspec.core.url_to_fs(address)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(handler))
    except (ValueError, ImportError, NotImplementedError, OSError) as error:
        raise ValueError(f"results must be a folder or an address such as s3://, got {address!r} ({error})") from error
    return filesystem, root.rstrip("/")


def _check_table(table: str) -> pa.Schema:
    if table not in SCHEMAS:
        raise ValueError(f"unknown table {table!r}{did_you_mean(table, SCHEMAS)}")
    return SCHEMAS[table]


def _conform(table: str, rows: Sequence[Mapping[str, Any]] | pa.Table, schema: pa.Schema) -> pa.Table:
    declared = set(schema.names)
    for names in [set(row) for row in rows] if isinstance(rows, Sequence) else [set(rows.column_names)]:
        if names != declared:
            missing, unknown = sorted(declared - names), sorted(names - declared)
            raise ValueError(f"rows of {table} must have its columns, got missing {missing}, unknown {unknown}")
    if isinstance(rows, Sequence):
        return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    return rows.select(schema.names).cast(schema)


def _sort_newest(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Sorts by the key and keeps the last of the rows with one key."""
    if rows.num_rows == 0:
        return rows
    codes = [_rank(rows[name]) for name in key]
    combined = codes[0] * (codes[1].max() + 1) + codes[1]
    order = np.argsort(combined, kind="stable")
    is_last = np.append(np.diff(combined[order]) != 0, True)
    if is_last.all() and (order[1:] > order[:-1]).all():
        return rows
    return rows.take(pa.array(order[is_last]))


def _rank(column: pa.ChunkedArray) -> np.ndarray:
    """The place of each value among the column's distinct values, ascending; int64 (rows,)."""
    encoded = column.combine_chunks().dictionary_encode()
    values = np.asarray(encoded.dictionary)
    place = np.empty(len(values), dtype=np.int64)
    place[np.argsort(values)] = np.arange(len(values))
    return place[np.asarray(encoded.indices)]


def _empty(schema: pa.Schema) -> pa.Table:
    # Not schema.empty_table(), which loads pandas.
    return pa.Table.from_batches([], schema)


def _to_strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=str)


def _is_visible(path: str) -> bool:
    return not path.rpartition("/")[2].startswith((".", "_"))
