"""A pack as a value: all that an update changes, cell by cell, kept, saved and loaded over all fields alike."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import chz
import numpy as np
from jaxtyping import Int
from safetensors.numpy import load_file, save_file

from memrl.config import TrainConfig
from memrl.learning.policy import PackPolicy
from memrl.learning.progress import Progress
from memrl.policy.adapter_pack import AdapterPack
from memrl.rollout.in_process import start_generators
from memrl.task.reach import Reach
from memrl.theory.observer import PackObserver

Part = np.ndarray | list | Progress | AdapterPack | PackObserver | Reach
"""What the fields of a state are."""

_ARRAYS, _PLAIN = "state.safetensors", "state.json"


@dataclass
class PackState:
    """What the cells of a pack have come to.

    Attributes:
        configs: the cells that are still training.
        progress: counters.
        adapters: their parameters, and the optimizer's tensors.
        generators: the random numbers of each cell's episodes.
        observer: what an ideal observer of each cell's rewards knows.
    """

    configs: list[TrainConfig]
    progress: Progress
    adapters: AdapterPack
    generators: list[np.random.Generator]
    observer: PackObserver

    @classmethod
    def start(cls, configs: Sequence[TrainConfig], policy: PackPolicy) -> "PackState":
        """Of cells that have done nothing yet."""
        channels = policy.channels
        return cls(
            list(configs),
            Progress.start(configs),
            policy.adapters,
            start_generators(configs),
            PackObserver(
                [channels.values[number] for number in channels.index], [config.num_keys for config in configs]
            ),
        )

    def __len__(self) -> int:
        return len(self.configs)

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Shrinks to the given cells (indices, ascending)."""
        _keep_fields(self, cells)

    def save(self, folder: Path) -> None:
        """Writes the whole state into a folder, which must exist."""
        arrays: dict[str, np.ndarray] = {}
        plain: dict[str, object] = {}
        for field in fields(self):
            _flatten(field.name, getattr(self, field.name), arrays, plain)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _ARRAYS)
        (folder / _PLAIN).write_text(json.dumps(plain), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Takes up what `save` wrote; this state must have been started from the same cells (`read_configs`)."""
        arrays, plain = load_file(folder / _ARRAYS), json.loads((folder / _PLAIN).read_text(encoding="utf-8"))
        for field in fields(self):
            if field.name != "configs":
                setattr(self, field.name, _restore(field.name, getattr(self, field.name), arrays, plain))


def read_configs(folder: Path) -> list[TrainConfig]:
    """The cells of a state that `PackState.save` wrote."""
    plain = json.loads((folder / _PLAIN).read_text(encoding="utf-8"))
    return [TrainConfig(**config) for config in plain["configs"]]


def _keep_fields(value: PackState | Progress, cells: Int[np.ndarray, "kept"]) -> None:
    """Shrinks every field of a dataclass over cells, whatever it is."""
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, np.ndarray):
            setattr(value, field.name, part[cells])
        elif isinstance(part, list):
            setattr(value, field.name, [part[cell] for cell in cells])
        elif isinstance(part, Progress):
            _keep_fields(part, cells)
        else:
            part.keep(cells)


def _flatten(name: str, value: Part, arrays: dict[str, np.ndarray], plain: dict[str, object]) -> None:
    """Files a field under its name: arrays by themselves, everything else as JSON."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
    elif isinstance(value, list):
        plain[name] = [_simplify(item) for item in value]
    elif isinstance(value, Progress):
        for field in fields(value):
            _flatten(f"{name}.{field.name}", getattr(value, field.name), arrays, plain)
    else:
        arrays.update({f"{name}.{part}": array for part, array in value.arrays().items()})


def _restore(name: str, value: Part, arrays: Mapping[str, np.ndarray], plain: Mapping[str, list]) -> Any:
    """The inverse of `_flatten`; `value` is the field of a state that has just started."""
    if isinstance(value, np.ndarray):
        return arrays[name].copy()
    if isinstance(value, list):
        return [_specialize(item, saved) for item, saved in zip(value, plain[name], strict=True)]
    if isinstance(value, Progress):
        parts = (field.name for field in fields(value))
        return Progress(*(_restore(f"{name}.{part}", getattr(value, part), arrays, plain) for part in parts))
    value.restore({key.removeprefix(f"{name}."): a for key, a in arrays.items() if key.startswith(f"{name}.")})
    return value


def _simplify(item: object) -> object:
    if isinstance(item, TrainConfig):
        return chz.asdict(item)
    return item.bit_generator.state if isinstance(item, np.random.Generator) else item


def _specialize(started: object, saved: Any) -> object:
    if isinstance(started, np.random.Generator):
        started.bit_generator.state = saved
        return started
    return saved
