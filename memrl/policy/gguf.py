"""Models in GGUF files, dequantized once into folders that transformers, PEFT and vLLM read."""

import io
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memrl.model_files import hash_weights
from memrl.policy.cache import find_cache_folder


def dequantized_folder(file: Path) -> Path:
    """Where the folder of a GGUF file's model is kept, whether or not it has been made."""
    return find_cache_folder() / "dequantized" / f"{file.stem}-{hash_weights(file)}"


def dequantize(file: Path) -> Path:
    """The folder of a GGUF file's model, float32, in the user's cache; made on first use, in about half a minute.

    Raises:
        ValueError: transformers can't read the file.
    """
    folder = dequantized_folder(file)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # The bar of converted tensors would break the live line of a command.
        with redirect_stderr(io.StringIO()):
            _write_dequantized(file, draft)
        # Processes that start together each make one; whoever comes late keeps the other's.
        if not folder.is_dir():
            os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_dequantized(file: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved, and says of its plain weights that they are quantized.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
