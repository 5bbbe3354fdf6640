"""Rows as their table's schema has them: checked, and of values that no column can hold, told."""

from collections.abc import Sequence

import pyarrow as pa

from memrl.tables.parts import KEYS
from memrl.tables.schema import EPISODES_TO_MEMORIZE, SCHEMAS, Row

_UNWRITABLE = (pa.ArrowException, ValueError, TypeError, OverflowError)
_LONGEST_VALUE = 40


def conform(table: str, rows: Sequence[Row] | pa.Table) -> tuple[pa.Table, list[Row]]:
    """Rows as the schema of their table has them.

    A row of episodes_to_memorize with a value that its column can't hold fails alone: it is taken without the value, as
    a failed row that says so.

    Args:
        table: whose rows they are.
        rows: dicts or a pyarrow table, with exactly the declared columns.

    Returns:
        The table, and the rows in it that failed so.

    Raises:
        ValueError: a column is missing, unknown or of another type, or a row lacks its key.
    """
    _check_columns(table, rows)
    schema = SCHEMAS[table]
    if isinstance(rows, Sequence):
        conformed, failed = _conform_dicts(table, [dict(row) for row in rows], schema)
    else:
        conformed, failed = rows.select(schema.names).cast(schema), []
    for name in KEYS[table]:
        if conformed[name].null_count:
            raise ValueError(f"rows of {table} must have their {name}, got a row without")
    return conformed, failed


def _check_columns(table: str, rows: Sequence[Row] | pa.Table) -> None:
    declared = set(SCHEMAS[table].names)
    for names in [set(row) for row in rows] if isinstance(rows, Sequence) else [set(rows.column_names)]:
        if names != declared:
            missing, unknown = sorted(declared - names), sorted(names - declared)
            raise ValueError(f"rows of {table} must have its columns, got missing {missing}, unknown {unknown}")


def _conform_dicts(table: str, rows: list[Row], schema: pa.Schema) -> tuple[pa.Table, list[Row]]:
    try:
        return pa.Table.from_pylist(rows, schema=schema), []
    except _UNWRITABLE as error:
        if table != EPISODES_TO_MEMORIZE:
            raise ValueError(f"rows of {table} must hold values of its columns' types, got {error}") from error
    failed = [row for row in rows if _blank_unfit(row, schema)]
    return pa.Table.from_pylist(rows, schema=schema), failed


def _blank_unfit(row: Row, schema: pa.Schema) -> bool:
    """Takes out of a row what its columns can't hold, and makes it a failed one; whether there was any."""
    unfit = [field.name for field in schema if not _fits(row[field.name], field.type)]
    if unfit:
        told = ", ".join(f"{name}={str(row[name])[:_LONGEST_VALUE]!a}" for name in unfit)
        row |= dict.fromkeys(unfit) | {"status": "failed", "error": f"the table can't hold {told}"}
    return bool(unfit)


def _fits(value: object, type_: pa.DataType) -> bool:
    try:
        pa.array([value], type=type_)
    except _UNWRITABLE:
        return False
    return True
