"""docs/reliability.md names tests that there are, and says which ones CI leaves out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text("utf-8")
TABLES = TEXT.partition("\n## Neighbors")[0]
ROWS = [line for line in TABLES.splitlines() if re.match(r"\| (?!promise \||what was done \|)", line)]

LEFT_OUT = re.compile(r"mark\.(long|gpu)\b")
"""Markers of which .ci/run has no stage."""


def read_tests(row: str) -> list[tuple[str, str]]:
    """(file, part of a test's name) of each test that a row names; the part is empty where a whole file is meant."""
    named, file = [], ""
    for word in re.findall(r"`([^`]+)`", row.rsplit("|", 2)[1]):
        if re.fullmatch(r"test_\w+\.py", word):
            file = word
            named.append((file, ""))
        elif re.fullmatch(r"…?[a-z0-9_]+…?", word) and file:
            named.append((file, word.strip("…")))
    return named


def test_there_are_rows():
    assert len(ROWS) > 60


@pytest.mark.parametrize("row", ROWS)
def test_every_row_names_a_test_that_there_is_or_says_why_there_is_none(row):
    named = read_tests(row)
    assert named or re.search(r"\bnot\b|ruff|gone", row.rsplit("|", 2)[1]), row
    for file, part in named:
        (path,) = ROOT.glob(f"tests/**/{file}")
        code = path.read_text("utf-8")
        assert not LEFT_OUT.search(code) or "not part of CI" in row, f"{file} has tests that CI leaves out"
        names = re.findall(r"^def test_(\w+)", code, re.MULTILINE)
        assert any(part in name for name in names), f"{file} has no test {part}"


def test_every_marker_but_those_has_a_stage():
    markers = re.findall(r"^    \"(\w+): ", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    stages = "".join(re.findall(r"pytest -m (.+)", (ROOT / ".ci" / "run").read_text("utf-8")))
    assert [name for name in markers if not re.search(rf"\b{name}\b", stages)] == ["long", "gpu"]
