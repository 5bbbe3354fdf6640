"""docs/glossary.md speaks of what there is."""

import re
from pathlib import Path
from typing import get_args

from memrl.config import Credit
from memrl.policy.calibration import KL_LIMIT_BITS, MASS_LIMIT
from memrl.tables.schema import CURVES_SCHEMA, EPISODES_TO_MEMORIZE_SCHEMA
from memrl.task.reward import FEEDBACK_DECIMALS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "glossary.md").read_text()
COLUMNS = {*CURVES_SCHEMA.names, *EPISODES_TO_MEMORIZE_SCHEMA.names}


def read_measures():
    rows = [line.split("|") for line in TEXT.split("## What is measured")[1].splitlines() if line.startswith("|")]
    return {name: row[3].strip() for row in rows for name in re.findall(r"`(\w+)`", row[2])}


def test_every_measure_is_a_column():
    assert set(read_measures()) <= COLUMNS


def test_every_column_in_bits_is_explained_in_bits():
    in_bits = {name for name in COLUMNS if name.endswith("_bits")} - {"half_bits"}  # episodes to half of them
    measures = read_measures()
    assert in_bits <= set(measures)
    assert {name for name in in_bits if not measures[name].startswith("bits")} == set()


def test_limits_and_choices_are_true():
    assert f"within {KL_LIMIT_BITS} bit of uniform, and at least {MASS_LIMIT} of it" in TEXT
    assert f"(to {FEEDBACK_DECIMALS} decimals)" in TEXT
    assert ", ".join(f"`{choice}`" for choice in get_args(Credit)) in TEXT
