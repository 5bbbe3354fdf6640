"""The files of a base model: which they are, and a hash of what they hold."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf", "config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "chat_template.json", "*.gguf"),
)


def hash_weights(place: Path) -> str:
    """16 hex digits that stand for the weights and the architecture of a model folder, or of a GGUF file."""
    return _hash_files(place, WEIGHTS)


def hash_tokenizer(place: Path) -> str:
    """16 hex digits that stand for the tokenizer and the chat template of a model folder, or of a GGUF file."""
    return _hash_files(place, TOKENIZER)


def name_files(model: str) -> str | None:
    """A name of the content of a model folder or GGUF file; None for other models, whose address is their name.

    So a folder whose weights have changed is another model, and one folder is one model by whatever path.
    """
    place = Path(os.path.expanduser(model))
    try:
        is_own = model and model != "embedded" and (place.is_dir() or (place.suffix == ".gguf" and place.is_file()))
        return f"{hash_weights(place)}-{hash_tokenizer(place)}" if is_own else None
    except (OSError, ValueError):  # no path at all, or one that can't be read: whoever loads the model says so
        return None


def _hash_files(place: Path, patterns: tuple[str, ...]) -> str:
    files = [place] if place.is_file() else sorted({file for pattern in patterns for file in place.glob(pattern)})
    parts = [f"{file.name if file != place else ''} {_hash_file(file.resolve(), *_stamp(file))}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _hash_file(file: Path, size: int, changed_ns: int) -> str:
    """The file's SHA-256; size and time of change are there so that a changed file is read again."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
