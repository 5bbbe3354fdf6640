"""Grids: a YAML file's axes, with what the command line changes of them, expanded to cells.

A grid file has five keys, all optional:

    description: one line
    base: {n_steps: 300}                # fields that all cells share
    axes:                               # their product is the grid
      N: [16, 64]                       # an axis of one field
      channel:                          # a compound axis: its entries set several fields
        - {algorithm: sft}
        - {reward_type: binned_distance, reward_bins: [2, 8]}     # lists in an entry stand for their product
    seeds: 16                           # a count (0, 1, ...), or a list of seeds
    calibrate: true                     # calibrates base models that are not, once, before the first cell

Numbers are read as on the command line (1e3 is an integer, 010 is ten, yes is a word), a key stands once in a mapping,
and there are no aliases. What a file, or a grid, would take beyond the limits is said before it is expanded.
"""

import itertools
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memrl.config import TrainConfig
from memrl.fields import find_default
from memrl.suggest import did_you_mean
from memrl.sweep.grid_file import Value, read_document

FIELDS = tuple(TrainConfig.__annotations__)
"""What a grid may set."""

Fields = Mapping[str, Any]
"""Some of a cell's fields, by name."""

MOST_CELLS = 250_000
"""The most cells of a grid."""

_KEYS = ("description", "base", "axes", "seeds", "calibrate")


@dataclass(frozen=True)
class Grid:
    """A named Cartesian product of cells.

    Attributes:
        name: the file's name, and the folder of its results.
        description: what it is for, one line.
        base: fields that all cells share.
        axes: the product's factors. A factor is a list of entries and an entry a dict of fields: an axis of one field
            has entries of that field; a compound axis (such as `channel`) has entries of several.
        seeds: one cell for each, at every point of the product.
        calibrate: whether base models are calibrated for the cells' prompts where they are not.
    """

    name: str
    description: str = ""
    base: Fields = field(default_factory=dict)
    axes: Mapping[str, Sequence[Fields]] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    calibrate: bool = False

    def cells(self) -> dict[str, TrainConfig]:
        """Expands the product, in its order, to cells by cell_id; of cells that are one and the same the first stays.

        Raises:
            ValueError: a combination is no valid cell; the message names its fields. Or there are too many.
        """
        factors = {**{axis: len(entries) for axis, entries in self.axes.items()}, "seeds": len(self.seeds)}
        _check_count("cells", factors)
        cells: dict[str, TrainConfig] = {}
        for entries in itertools.product(*self.axes.values()):
            fields = dict(self.base)
            for entry in entries:
                fields |= entry
            for seed in self.seeds:
                cell = _build_cell(fields | {"seed": seed})
                cells.setdefault(cell.cell_id, cell)
        return cells

    def override(self, words: Mapping[str, Sequence[object]]) -> "Grid":
        """The grid with fields as the command line gives them, one value or more a field.

        - `seed` gives the seeds themselves; `seeds` (a count or several seeds) is read by the caller.
        - A field that is an axis of its own gets these values.
        - A field that a compound axis sets keeps the entries that use one of these values (`reward_type=binary` keeps
          binary rewards on both env_types, and drops sft, which has no reward); a value that no entry uses is put into
          the entries that set the field (`reward_bins=4` where the grid has 8).
        - Every other field replaces the base's, and becomes an axis if it has several values.

        >>> grid = Grid("g", axes={"N": [{"N": 4}], "channel": [{"algorithm": "sft"}, {"reward_type": "binary"}]})
        >>> [(c.N, c.channel_name) for c in grid.override({"N": [8, 16], "reward_type": ["binary"]}).cells().values()]
        [(8, 'binary'), (16, 'binary')]

        Raises:
            ValueError: nothing of a compound axis is left.
        """
        base, axes = dict(self.base), {name: list(entries) for name, entries in self.axes.items()}
        seeds = tuple(words.get("seed", self.seeds))
        compound = [name for name in axes if name not in FIELDS]
        # Fields outside the compound axes come first: an entry's validity may hang on them.
        inside = {key: next((a for a in compound if _sets(axes[a], key)), None) for key in words}
        for key in sorted((key for key in words if key != "seed"), key=lambda key: inside[key] is not None):
            axis = inside[key]
            if axis is not None:
                axes[axis] = _restrict(axes[axis], key, words[key], base)
            elif key in axes or len(words[key]) > 1:
                base.pop(key, None)
                axes[key] = [{key: value} for value in words[key]]
            else:
                base[key] = words[key][0]
        return replace(self, base=base, axes=axes, seeds=seeds)


def list_grids(folder: Path) -> list[str]:
    """Names of the grids of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_grid(name: str, folder: Path) -> Grid:
    """Reads `<folder>/<name>.yaml`.

    Raises:
        ValueError: there is no such grid, or the file is not of the form that this module describes.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown grid {name!r}{did_you_mean(name, list_grids(folder))}")
    return parse_grid(name, read_document(path))


def read_question(name: str, folder: Path) -> str:
    """What a grid is for, one line; empty where there is no such grid."""
    return load_grid(name, folder).description if name in list_grids(folder) else ""


def parse_grid(name: str, content: Value) -> Grid:
    """Checks what a grid file says and puts it into one form.

    Raises:
        ValueError: an unknown key or field, an axis without values, or a field that two places set.
    """
    known = ", ".join(_KEYS)
    parts = _read_mapping(f"grid {name}", content, of=known)
    _reject_unknown(f"key of grid {name}", parts, _KEYS)
    description = parts.get("description") or ""
    if not isinstance(description, str):
        raise ValueError(f"description must be a line of text, got {reprlib.repr(description)}")
    base = _read_mapping("base", parts.get("base") or {}, of="fields")
    given = _read_mapping("axes", parts.get("axes") or {}, of="lists")
    axes = {axis: _read_axis(axis, values) for axis, values in given.items()}
    _reject_unknown("field", base, FIELDS)
    owners: dict[str, str] = {}
    for axis, entries in axes.items():
        for key in {key for entry in entries for key in entry}:
            _reject_unknown("field", [key], FIELDS)
            if key in owners:
                raise ValueError(f"axes must set a field once, got {key} in {owners[key]} and {axis}")
            owners[key] = axis
    if "seed" in owners or "seed" in base:
        raise ValueError(f"grid {name} must give seeds under `seeds`, got the field seed")
    base = {key: _read_value(key, value) for key, value in base.items()}
    calibrate = parts.get("calibrate", False)
    if not isinstance(calibrate, bool):
        raise ValueError(f"calibrate must be true or false, got {reprlib.repr(calibrate)}")
    return Grid(name, description, base, axes, read_seeds(parts.get("seeds", 1)), calibrate)


def read_seeds(seeds: object) -> tuple[int, ...]:
    """A count, or the seeds themselves.

    >>> read_seeds(3), read_seeds([5, 7])
    ((0, 1, 2), (5, 7))

    Raises:
        ValueError: neither of these, or none at all, or too many.
    """
    given = [_read_value("seed", seed) for seed in (seeds if isinstance(seeds, list) else [seeds])]
    count = len(given) if isinstance(seeds, list) else given[0]
    least = 0 if isinstance(seeds, list) else 1
    if not given or not all(type(seed) is int and seed >= least for seed in given):
        raise ValueError(f"seeds must be a count from 1 or a list of integers from 0, got {reprlib.repr(seeds)}")
    _check_count("seeds", {"seeds": count})
    return tuple(dict.fromkeys(given if isinstance(seeds, list) else range(count)))


def _read_mapping(name: str, value: object, of: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping of {of}, got {reprlib.repr(value)}")
    return value


def _read_axis(axis: str, values: object) -> list[Fields]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"axis {axis} must be a list of values, got {reprlib.repr(values)}")
    if axis in FIELDS:
        return [{axis: _read_value(axis, value)} for value in values]
    if not all(isinstance(value, dict) for value in values):
        hint = did_you_mean(axis, FIELDS)
        got = f"{reprlib.repr(values)}{hint}"
        raise ValueError(f"axis {axis} must name a field, or be a list of mappings of fields, got {got}")
    return [entry for value in values for entry in _spread(axis, value)]


def _read_value(name: str, value: object) -> Any:
    """1e3 is an integer where an integer is asked for, as on the command line."""
    if not (isinstance(value, float) and value.is_integer()):
        return value
    return int(value) if TrainConfig.__annotations__.get(name) in (int, int | None) else value


def _check_count(what: str, factors: Mapping[str, int]) -> None:
    """Refuses a product of too many, which is still to be expanded."""
    count = math.prod(factors.values())
    if count > MOST_CELLS:
        told = " × ".join(f"{number:,} {name}" for name, number in factors.items())
        raise ValueError(
            f"{what} must be at most {MOST_CELLS:,} in all, got {told}" + f" = {count:,}" * (len(factors) > 1)
        )


def _spread(axis: str, entry: Fields) -> Iterator[Fields]:
    """An entry whose fields may be lists stands for their product."""
    options = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
    _check_count(f"entries of axis {axis}", {key: len(values) for key, values in options.items()})
    for values in itertools.product(*options.values()):
        yield {key: _read_value(key, value) for key, value in zip(entry, values, strict=True)}


def _restrict(entries: Sequence[Fields], key: str, values: Sequence[object], base: Fields) -> list[Fields]:
    kept: list[Fields] = []
    for value in values:
        matching = [entry for entry in entries if _uses({**base, **entry}, key, value)]
        kept += matching or [{**entry, key: value} for entry in entries if key in entry]
    if not kept:
        raise ValueError(f"{key} must be a value that the grid's other fields allow, got {values}")
    return kept


def _uses(fields: Fields, key: str, value: object) -> bool:
    """Whether the cells of these fields use a field (sft uses no reward_type) and give it this value."""
    try:
        return TrainConfig(**fields).identity()[key] == value
    except ValueError:
        # Valid only together with another axis, such as an N of its own: what the entry says must do.
        return fields.get(key) == value


def _sets(entries: Iterable[Fields], key: str) -> bool:
    return any(key in entry for entry in entries)


def _build_cell(fields: Fields) -> TrainConfig:
    try:
        return TrainConfig(**fields)
    except ValueError as error:
        named = ((name, value) for name, value in fields.items() if name in FIELDS)
        told = " ".join(f"{k}={v}" for k, v in named if v != find_default(TrainConfig, k))
        raise ValueError(f"{error} (in the cell {told})") from None


def _reject_unknown(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(str(name), known)}")
