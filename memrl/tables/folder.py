"""TableFolder: the part files of one table, and the part that is growing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from memrl.tables.files import is_local, read_file, remove_file, remove_leftovers, replace_file
from memrl.tables.parts import KEYS, DamagedPartError, decode_older_agents, decode_part, encode_part, is_current
from memrl.tables.schema import AGENTS, SCHEMAS

PART_ROWS = 65_536
"""A part file holds no more rows than this, unless one append brings more."""

MOST_SMALL_PARTS = 16
"""`compact` leaves a table alone until it has more than this many part files that are not half full."""

_READ_ATTEMPTS = 5


class TableFolder:
    """The part files of one table.

    Args:
        table: its name.
        filesystem: where it lies.
        path: the folder's path there.
        run: names the growing part; names sort by time.
        meet_damage: called with a part that can't be read, and why; it sets the part aside, or raises the error.
    """

    def __init__(
        self,
        table: str,
        filesystem: fs.FileSystem,
        path: str,
        run: str,
        meet_damage: Callable[[str, DamagedPartError], None],
    ) -> None:
        self.schema, self.key = SCHEMAS[table], KEYS[table]
        self._table, self._filesystem, self._path, self._run = table, filesystem, path, run
        self._meet_damage = meet_damage
        self._number, self._growing = 0, _empty(self.schema)

    def list_parts(self) -> list[str]:
        """Paths of the part files, oldest first."""
        selector = fs.FileSelector(self._path, allow_not_found=True)
        files = [info.path for info in self._filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        return sorted(path for path in files if path.endswith(".parquet") and _is_visible(path))

    def grow(self, more: pa.Table) -> None:
        """Adds rows of the declared schema to the growing part; on return they are written.

        Raises:
            OSError: they can't be written now; they will be with the next call.
        """
        if self._growing.num_rows and self._growing.num_rows + more.num_rows > PART_ROWS:
            self._begin_next()
        self._growing = sort_newest(pa.concat_tables([self._growing, more]), self.key)
        self._put(f"{self._path}/part-{self._run}-{self._number:05d}.parquet", self._growing)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, the key's among them, sorted by the key; of rows with one key, the newest.

        Raises:
            OSError: a part can't be read.
        """
        for _ in range(_READ_ATTEMPTS - 1):
            with suppress(FileNotFoundError):
                # A compaction may take parts away after they were listed; then the merged one is there.
                return self._read_parts(columns)
        return self._read_parts(columns)

    def read_older_agents(self) -> pa.Table:
        """The rows of agents in parts of episodes_to_memorize from when they stood there."""
        found = [SCHEMAS[AGENTS].empty_table()]
        for part in self.list_parts():
            with suppress(FileNotFoundError):
                try:
                    found.append(decode_older_agents(part, read_file(self._filesystem, part)))
                except DamagedPartError as error:
                    self._meet_damage(part, error)
        return _concat_all(found)

    def mend(self, *, alone: bool) -> None:
        """Meets the damage of every part.

        Args:
            alone: no other writer is alive: what killed ones left is cleared up too, and parts of an older schema
                version are written anew.
        """
        if alone and is_local(self._filesystem):
            remove_leftovers(Path(self._path))
        keys = [_empty(self.schema).select(self.key)]
        for part in self.list_parts():
            with suppress(FileNotFoundError):
                keys.append(self._mend_part(part, alone=alone).select(self.key))
        found = pa.concat_tables(keys)
        if alone and sort_newest(found, self.key).num_rows < found.num_rows:
            # A compaction was killed when its merged part was there and the small ones were too.
            self._merge(self.list_parts())

    def drop_rows(self, cell_ids: Sequence[str]) -> None:
        """Removes the rows that trained policies left for some cells; parts are rewritten in place."""
        for part in self.list_parts():
            rows = self._read_part(part)
            gone = np.isin(_to_strings(rows["cell_id"]), cell_ids)
            if "agent" in rows.column_names:
                gone &= _to_strings(rows["agent"]) == "lora"
            if gone.any():
                self._put(part, rows.filter(pa.array(~gone)))

    def compact(self) -> None:
        """Merges neighboring small parts if there are many; no other writer may be alive."""
        parts = self.list_parts()
        if len(parts) <= MOST_SMALL_PARTS:
            return
        small = {part: self._read_part(part, self.key).num_rows < PART_ROWS // 2 for part in parts}
        if sum(small.values()) <= MOST_SMALL_PARTS:
            return
        # Neighbors alone are merged, so that newer rows stay in newer parts.
        for is_small, run in groupby(parts, key=small.__getitem__):
            if is_small:
                self._merge(list(run))
        self._begin_next()

    def _begin_next(self) -> None:
        self._growing, self._number = _empty(self.schema), self._number + 1

    def _merge(self, parts: list[str]) -> None:
        self._put(parts[-1], sort_newest(_concat_all([self._read_part(part) for part in parts]), self.key))
        for part in parts[:-1]:
            remove_file(self._filesystem, part)

    def _mend_part(self, part: str, *, alone: bool) -> pa.Table:
        rows = self._read_part(part)
        with suppress(FileNotFoundError):
            # It is gone where it was set aside.
            if alone and not is_current(read_file(self._filesystem, part), self._table):
                self._put(part, rows)
        return rows

    def _read_parts(self, columns: Sequence[str]) -> pa.Table:
        parts = [self._read_part(part, columns).select(columns) for part in self.list_parts()]
        return sort_newest(pa.concat_tables([_empty(self.schema).select(columns), *parts]), self.key)

    def _read_part(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part; none where its damage was met and the part set aside."""
        content = read_file(self._filesystem, part)
        try:
            return decode_part(part, self._table, content, columns)
        except DamagedPartError as error:
            self._meet_damage(part, error)
            return _empty(self.schema)

    def _put(self, path: str, rows: pa.Table) -> None:
        replace_file(self._filesystem, path, encode_part(rows))


def _concat_all(parts: Sequence[pa.Table]) -> pa.Table:
    """All rows with all columns, but for those that no schema declares and that parts hold in different types."""
    types: dict[str, set[pa.DataType]] = {}
    for field in (field for part in parts for field in part.schema):
        types.setdefault(field.name, set()).add(field.type)
    agreed = [name for name, found in types.items() if len(found) == 1]
    chosen = [part.select([name for name in part.column_names if name in agreed]) for part in parts]
    return pa.concat_tables(chosen, promote_options="default")


def sort_newest(rows: pa.Table, key: Sequence[str]) -> pa.Table:
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
