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
    folder: Path,
    name: str,
    tensors: Mapping[str, np.ndarray],
    adapter_config: Mapping[str, object],
    row: Mapping[str, object] | None = None,
) -> Path:
    """Writes `adapter_config.json` and `adapter_model.safetensors` under folder/name, as PEFT and vLLM read them.

    The files are written under a name that begins with a dot and then renamed, so a reader sees all of them or none.

    Args:
        folder: an existing folder.
        name: name of the adapter's own folder; must not be in use.
        tensors: the adapter's tensors under PEFT's names, at their true rank.
        adapter_config: what `peft.LoraConfig.to_dict` gives; sets and enumerations are written as lists and values.
        row: what is known of the cell, for a file `cell.json` beside the two.

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
    if row is not None:
        (draft / "cell.json").write_text(json.dumps(dict(row), default=_write_as_json, indent=1) + "\n", "utf-8")
    draft.rename(target)
    return target


def keep_adapter(
    folder: Path,
    name: str,
    tensors: Mapping[str, np.ndarray],
    adapter_config: Mapping[str, object],
    row: Mapping[str, object],
) -> Path:
    """Publishes an adapter that stays, in the place of an earlier one of that name; see `publish_adapter`."""
    shutil.rmtree(folder / f".{name}", ignore_errors=True)  # what a killed process left
    if (folder / name).exists():
        withdraw_adapter(folder / name)
    return publish_adapter(folder, name, tensors, adapter_config, row)


def prepare_adapters(folder: str) -> Path:
    """Makes the folder that adapters are to be kept in.

    Raises:
        ValueError: it can't be made, or not be written.
    """
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"save_adapters must be a folder that can be written, got {folder} ({error.strerror})"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"save_adapters must be a folder that can be written, got {folder}")
    return path


def withdraw_adapter(adapter: Path) -> None:
    """Deletes what `publish_adapter` wrote."""
    shutil.rmtree(adapter)


def _write_as_json(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, np.generic):
        return value.item()
    return getattr(value, "value", None) or str(value)
