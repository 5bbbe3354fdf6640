"""A stretch: about a second of a pack's training, and what its trial then tells the launcher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from memrl.tables.schema import CURVES_SCHEMA, Row


@dataclass(frozen=True)
class Stretch:
    """How far a pack is, and what has ended since its last stretch.

    Attributes:
        rows: of episodes_to_memorize, one per cell that has ended.
        curves: their curve rows.
        live: cells still training.
        updates: made so far.
        episodes: so far, of all cells.
        absorbed_bits: mean over the cells of what each had absorbed at its last scoring; NaN before the first one.
        observed_bits: likewise.
        too_large: why the cells still training have to go on in smaller packs, from the last checkpoint; empty: they
            have not.
    """

    rows: Sequence[Row] = ()
    curves: pa.Table = field(default_factory=CURVES_SCHEMA.empty_table)
    live: int = 0
    updates: int = 0
    episodes: int = 0
    absorbed_bits: float = math.nan
    observed_bits: float = math.nan
    too_large: str = ""
