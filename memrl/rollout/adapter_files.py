"""Adapters as files: PEFT's layout, published whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_SHARED_MEMORY = Path("/dev/shm")


def make_adapter_folder() -> Path:
    """Makes an empty folder for adapters: in shared memory where the machine has it, else with the temporary files."""
    shared = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK | os.X_OK) else None
    return Path(tempfile.mkdtemp(prefix="memrl-adapters-", dir=shared))


def publish_adapter(
    folder: Path, name: str, tensors: Mapping[str, np.ndarray], adapter_config: Mapping[str, object]
) -> Path:
    """Writes `adapter_config.json` and `adapter_model.safetensors` under folder/name, as PEFT and vLLM read them.

    The files are written under a name that begins with a dot and then renamed, so a reader sees all of them or none.

    Args:
        folder: an existing folder.
        name: name of the adapter's own folder; must not be in use.
        tensors: the adapter's tensors under PEFT's names, at their true rank.
        adapter_config: what `peft.LoraConfig.to_dict` gives; sets and enumerations are written as lists and values.

    Returns:
        The adapter's folder.

    Raises:
        ValueError: the name is in use.
    """
    target, draft = folder / name, folder / f".{name}"
    if target.exists():
        raise ValueError(f"name must be new in {folder}, got {name!r}")
    draft.mkdir()
    save_file(
        {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, draft / "adapter_model.safetensors"
    )
    (draft / "adapter_config.json").write_text(json.dumps(dict(adapter_config), default=_write_as_json))
    draft.rename(target)
    return target


def withdraw_adapter(adapter: Path) -> None:
    """Deletes what `publish_adapter` wrote."""
    shutil.rmtree(adapter)


def _write_as_json(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, np.generic):
        return value.item()
    return getattr(value, "value", None) or str(value)
