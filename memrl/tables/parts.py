"""Part files: parquet with checksums and a schema version, so that a reader gets what was written or learns that not.

Three things in a part's footer are memrl's own: `memrl.schema_version`, `memrl.crc32`, which covers every byte of the
file, and parquet's checksums of pages, by which other readers may check what they read.
"""

import re
import zlib
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from memrl.tables.older import LAST_MIXED_VERSION, NEEDED, keep_agents, keep_trained
from memrl.tables.schema import AGENTS, CURVES, EPISODES_TO_MEMORIZE, REPEATED, SCHEMAS

KEYS = {CURVES: ("cell_id", "update"), EPISODES_TO_MEMORIZE: ("cell_id", "agent"), AGENTS: ("cell_id", "agent")}
"""The columns that name a row of each table; rows are sorted by them."""

SCHEMA_VERSION = 2
"""Raised when a column comes to mean something else; a column more or less needs no new version.

Parts of version 0 name none, and have no checksums. What changed with version 2: `memrl.tables.older`.
"""

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())

_VERSION, _CHECKSUM = "memrl.schema_version", "memrl.crc32"
_MARK = b"crc32="
_UNSUMMED = _MARK + b"00000000"
_SUMMED = re.compile(re.escape(_MARK) + rb"[0-9a-f]{8}")

_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError)
"""What pyarrow raises on bytes that are no parquet file, or no longer one."""


class DamagedPartError(ValueError):
    """A file can't be read as a part of its table: it is torn, its bits have changed, or it is another's."""

    def __init__(self, path: str, reason: object) -> None:
        first_line = str(reason).strip().partition("\n")[0]
        super().__init__(f"{path} must be a whole part of its table, got {first_line}")


def encode_part(rows: pa.Table, level: int | None = None) -> bytes:
    """The bytes of a part file; equal rows give equal bytes.

    Args:
        rows: of the table's schema.
        level: zstd's, 1 to 22; None: what pyarrow takes.
    """
    rows = rows.combine_chunks().cast(store_schema(rows.schema))
    floats = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    options = {
        "compression": "zstd",
        "compression_level": level,
        "use_dictionary": [name for name in rows.column_names if name not in floats],
        "use_byte_stream_split": floats,
        "write_page_checksum": True,
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, **options) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({_VERSION: str(SCHEMA_VERSION), _CHECKSUM: _UNSUMMED.decode()})
    blank = sink.getvalue().to_pybytes()
    before, mark, after = blank.rpartition(_UNSUMMED)
    return b"".join((before, _sum(blank), after)) if mark else blank


def store_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of part files: text of few values is a dictionary."""
    repeated = [field.metadata is not None and REPEATED in field.metadata for field in schema]
    fields = [field.with_type(_DICTIONARY) if few else field for field, few in zip(schema, repeated, strict=True)]
    return pa.schema(fields, schema.metadata)


def decode_part(path: str, table: str, content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a part file of this version or an older one, checked against its checksums.

    Args:
        path: where it lies, for messages.
        table: whose part it is.
        content: its bytes.
        columns: the columns to read; None reads all, those that no schema declares among them.

    Returns:
        A table whose declared columns have their declared types; a declared column that the file lacks is null.

    Raises:
        DamagedPartError: the bytes are not those that were written, or never were a part of this table.
        ValueError: a later version of memrl wrote it.
    """
    needed = None if columns is None else {*columns, *NEEDED}
    version, held, rows = _decode(path, content, needed)
    _check_keys(path, table, held, rows)
    rows = _declare(path, rows, SCHEMAS[table], needed)
    if table == EPISODES_TO_MEMORIZE and version <= LAST_MIXED_VERSION:
        rows = keep_trained(rows)
    return rows if columns is None else rows.select([name for name in rows.column_names if name in columns])


def decode_older_agents(path: str, content: bytes) -> pa.Table:
    """The rows of agents in a part of episodes_to_memorize that was written when they stood there; else none.

    Raises:
        DamagedPartError: the bytes are not those that were written, or never were a part of this table.
        ValueError: a later version of memrl wrote it.
    """
    version, held, rows = _decode(path, content, None)
    _check_keys(path, EPISODES_TO_MEMORIZE, held, rows)
    if version > LAST_MIXED_VERSION:
        return SCHEMAS[AGENTS].empty_table()
    return keep_agents(_declare(path, rows, SCHEMAS[EPISODES_TO_MEMORIZE], None)).cast(SCHEMAS[AGENTS])


def _decode(path: str, content: bytes, columns: Collection[str] | None) -> tuple[int, list[str], pa.Table]:
    """A part's version, the columns it holds, and these of them."""
    summed = _check_sum(path, content)
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        version = int((file.metadata.metadata or {}).get(_VERSION.encode(), b"0"))
        held = file.schema_arrow.names
        rows = file.read([name for name in held if columns is None or name in columns])
        rows.validate(full=True)
    except _UNREADABLE as error:
        raise DamagedPartError(path, error) from error
    if version and not summed:
        raise DamagedPartError(path, "a file without its checksum")
    if version > SCHEMA_VERSION:
        raise ValueError(f"results must be of schema version {SCHEMA_VERSION} at most, got {version} in {path}")
    return version, held, rows


def is_current(content: bytes, table: str) -> bool:
    """Whether a readable part was written as `encode_part` does it now."""
    file = pq.ParquetFile(pa.BufferReader(content))
    version = (file.metadata.metadata or {}).get(_VERSION.encode(), b"0")
    return int(version) == SCHEMA_VERSION and set(SCHEMAS[table].names) <= set(file.schema_arrow.names)


def _sum(blank: bytes) -> bytes:
    return _MARK + b"%08x" % zlib.crc32(blank)


def _check_sum(path: str, content: bytes) -> bool:
    """Compares the checksum of all bytes, its own eight digits taken for zeros; returns whether there is one."""
    found = _SUMMED.match(content, max(content.rfind(_MARK), 0))
    if found is None:
        return False
    start, end = found.span()
    if _sum(b"".join((content[:start], _UNSUMMED, content[end:]))) != content[start:end]:
        raise DamagedPartError(path, "bytes that have changed since it was written")
    return True


def _check_keys(path: str, table: str, held: Sequence[str], rows: pa.Table) -> None:
    missing = [name for name in KEYS[table] if name not in held]
    if missing:
        raise DamagedPartError(path, f"a file without the column {missing[0]} of {table}")
    if len(set(held)) < len(held):
        raise DamagedPartError(path, "a file with two columns of one name")
    for name in KEYS[table]:
        if name in rows.column_names and rows[name].null_count:
            raise DamagedPartError(path, f"rows without {name}")


def _declare(path: str, rows: pa.Table, schema: pa.Schema, columns: Collection[str] | None) -> pa.Table:
    """Gives the declared columns their types, and nulls where the file lacks them; the others stay behind them."""
    wanted = [field for field in schema if columns is None or field.name in columns]
    arrays = [_cast(path, rows, field) for field in wanted]
    others = [field for field in rows.schema if field.name not in schema.names]
    fields = [*wanted, *others]
    return pa.table([*arrays, *(rows[field.name] for field in others)], schema=pa.schema(fields))


def _cast(path: str, rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in rows.column_names:
        return pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
    column = rows[field.name]
    if not _is_like(column.type, field.type):
        raise DamagedPartError(path, f"{column.type} in column {field.name}, which holds {field.type}")
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise DamagedPartError(path, f"{error} in column {field.name}") from error


def _is_like(held: pa.DataType, declared: pa.DataType) -> bool:
    """Whether values of one type are values of the other: texts, truth values, or numbers; a time may be a text."""
    if pa.types.is_null(held) or held == declared:
        return True
    if pa.types.is_dictionary(held):
        return _is_like(held.value_type, declared)
    if pa.types.is_timestamp(declared):
        return _is_text(held) or pa.types.is_timestamp(held)
    return next((is_kind(held) for is_kind in (_is_text, _is_number) if is_kind(declared)), False)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)
