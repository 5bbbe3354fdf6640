"""Grids: a YAML file's axes, with what the command line changes of them, expanded to cells.

A grid file has four keys, all optional:

    description: one line
    base: {n_steps: 300}                # fields that all cells share
    axes:                               # their product is the grid
      N: [16, 64]                       # an axis of one field
      channel:                          # a compound axis: its entries set several fields
        - {algorithm: sft}
        - {reward_type: binned_distance, reward_bins: [2, 8]}     # lists in an entry stand for their product
    seeds: 16                           # a count (0, 1, ...), or a list of seeds
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import chz
import yaml

from memrl.config import TrainConfig, did_you_mean

FIELDS = tuple(TrainConfig.__annotations__)
"""What a grid may set."""

_KEYS = ("description", "base", "axes", "seeds")


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
    """

    name: str
    description: str = ""
    base: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)

    def cells(self) -> dict[str, TrainConfig]:
        """Expands the product, in its order, to cells by cell_id; of cells that are one and the same the first stays.

        Raises:
            ValueError: a combination is no valid cell; the message names its fields.
        """
        cells: dict[str, TrainConfig] = {}
        for entries in itertools.product(*self.axes.values()):
            fields = dict(self.base)
            for entry in entries:
                fields |= entry
            for seed in self.seeds:
                cell = _build_cell(fields | {"seed": seed})
                cells.setdefault(cell.cell_id, cell)
        return cells

    def override(self, words: Mapping[str, Sequence[Any]]) -> "Grid":
        """The grid with fields as the command line gives them, one value or more a field.

        - `seed` gives the seeds themselves; `seeds` (a count or several seeds) is read by the caller.
        - A field that is an axis of its own gets these values.
        - A field that a compound axis sets keeps the entries that use one of these values (`reward_type=binary` keeps
          binary rewards on both env_types, and drops sft, which has no reward); a value that no entry uses is put into
          the entries that set the field (`reward_bins=4` where the grid has 8).
        - Any other field replaces the base's, and becomes an axis if it has several values.

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
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"grid {name} must be valid YAML, got {error}") from None
    return parse_grid(name, content)


def parse_grid(name: str, content: Any) -> Grid:
    """Checks what a grid file says and puts it into one form.

    Raises:
        ValueError: an unknown key or field, an axis without values, or a field that two places set.
    """
    if not isinstance(content, dict):
        raise ValueError(f"grid {name} must be a mapping of {', '.join(_KEYS)}, got {content!r}")
    _reject_unknown(f"key of grid {name}", content, _KEYS)
    base = content.get("base") or {}
    axes = {axis: _read_axis(axis, values) for axis, values in (content.get("axes") or {}).items()}
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
    return Grid(name, str(content.get("description", "")), base, axes, read_seeds(content.get("seeds", 1)))


def read_seeds(seeds: Any) -> tuple[int, ...]:
    """A count, or the seeds themselves.

    >>> read_seeds(3), read_seeds([5, 7])
    ((0, 1, 2), (5, 7))

    Raises:
        ValueError: neither of these, or none at all.
    """
    values = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(values, list) or not values or not all(type(seed) is int and seed >= 0 for seed in values):
        raise ValueError(f"seeds must be a count from 1 or a list of integers from 0, got {seeds!r}")
    return tuple(dict.fromkeys(values))


def _read_axis(axis: str, values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"axis {axis} must be a list of values, got {values!r}")
    if axis in FIELDS:
        return [{axis: value} for value in values]
    if not all(isinstance(value, dict) for value in values):
        hint = did_you_mean(axis, FIELDS)
        raise ValueError(f"axis {axis} must name a field, or be a list of mappings of fields, got {values!r}{hint}")
    return [entry for value in values for entry in _spread(value)]


def _spread(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry whose fields may be lists stands for their product."""
    options = [value if isinstance(value, list) else [value] for value in entry.values()]
    for values in itertools.product(*options):
        yield dict(zip(entry, values, strict=True))


def _restrict(
    entries: Sequence[Mapping[str, Any]], key: str, values: Sequence[Any], base: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    kept: list[Mapping[str, Any]] = []
    for value in values:
        matching = [entry for entry in entries if _uses({**base, **entry}, key, value)]
        kept += matching or [{**entry, key: value} for entry in entries if key in entry]
    if not kept:
        raise ValueError(f"{key} must be a value that the grid's other fields allow, got {values}")
    return kept


def _uses(fields: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether the cells of these fields use a field (sft uses no reward_type) and give it this value."""
    try:
        return TrainConfig(**fields).identity()[key] == value
    except ValueError:
        # Valid only together with another axis, such as an N of its own: what the entry says must do.
        return fields.get(key) == value


def _sets(entries: Iterable[Mapping[str, Any]], key: str) -> bool:
    return any(key in entry for entry in entries)


def _build_cell(fields: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**fields)
    except ValueError as error:
        defaults = chz.chz_fields(TrainConfig)
        told = " ".join(f"{k}={v}" for k, v in fields.items() if k in defaults and v != defaults[k]._default)
        raise ValueError(f"{error} (in the cell {told})") from None


def _reject_unknown(what: str, names: Iterable[Any], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(str(name), known)}")


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as the number it is; YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)
