"""docs/columns.md says of every column what it is."""

import re
from pathlib import Path

from columns import describe_columns

from memrl.tables.schema import SCHEMAS

PAGE = Path(__file__).parents[2] / "docs" / "columns.md"


def test_the_page_is_made_from_the_schemas():
    page = PAGE.read_text("utf-8")
    assert page == describe_columns(), "uv run python docs/columns.py > docs/columns.md"


def test_every_column_has_type_meaning_and_example():
    for table, schema in SCHEMAS.items():
        section = describe_columns().split(f"## {table}\n")[1].split("\n## ")[0]
        rows = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in section.splitlines() if row.startswith("| `")]
        assert [row[0].strip("`") for row in rows] == schema.names
        for name, type_, unit, meaning, example in rows:
            assert type_ in ("text", "int32", "int64", "float32", "float64", "bool", "timestamp"), name
            assert unit.strip() or not name.strip("`").endswith("_bits"), name
            assert len(meaning) > 5, name
            assert example.strip("` "), name
