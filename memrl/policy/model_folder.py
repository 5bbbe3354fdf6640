"""Where a model lies: the embedded one's folder, a folder of the user's own, or a name on the Hugging Face hub."""

import json
import os
import re
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

RULE = "model must be embedded, a readable model folder, or a Hugging Face name"
"""What a model that can't be read breaks."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def embedded_model_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(files("memrl"))) / "assets" / "embedded"


def check_model_folder(model: str) -> str:
    """Resolves `model` to what transformers loads: a folder, or a name on the Hugging Face hub.

    Looks at files only, and imports nothing, so that a bad address is refused at once. A name of the form `owner/name`
    that is no folder here is taken for a hub name.

    >>> check_model_folder("Qwen/Qwen3-8B")
    'Qwen/Qwen3-8B'

    Raises:
        ValueError: a path that is no folder, or a folder without a readable configuration, tokenizer or weights.
    """
    if not _may_be_path(model):
        raise ValueError(f"{RULE}, got {model[:80]!r}")
    folder = embedded_model_folder() if model == "embedded" else Path(os.path.expanduser(model))
    if model and folder.is_dir():
        problem = _find_folder_problem(folder)
        if problem:
            raise ValueError(f"{RULE}, got {model!r} ({problem})")
        return str(folder)
    if folder.exists() or not _HUB_NAME.fullmatch(model):
        raise ValueError(f"{RULE}, got {model!r} (no such folder)")
    if get_close_matches(model, ["embedded"], cutoff=0.8):
        raise ValueError(f"{RULE}, got {model!r}; did you mean 'embedded'?")
    return model


def _may_be_path(text: str) -> bool:
    """Whether the system takes a text for a path, to something or to nothing."""
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except (OSError, ValueError):
        return False
    return True


def _find_folder_problem(folder: Path) -> str:
    if not os.access(folder, os.R_OK | os.X_OK):
        return "the folder is not readable"
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except OSError:
        return "it holds no config.json"
    except (ValueError, RecursionError):
        return "its config.json is not JSON"
    if not isinstance(config, dict) or "model_type" not in config:
        return "its config.json names no model_type"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return "it holds no tokenizer"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not list(folder.glob("pytorch_model*.bin")):
        return "it holds no weights"
    return next((problem for path in weights if (problem := _find_weights_problem(path))), "")


def _find_weights_problem(path: Path) -> str:
    """Reads the header of a safetensors file: 8 bytes of length, JSON, then the tensors up to the last offset."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(header_bytes) if header_bytes <= size else b"")
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        last = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (OSError, ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        return f"{path.name} is no safetensors file"
    return "" if 8 + header_bytes + last == size else f"{path.name} is cut off"
