"""The kernels compiled with AMX's instructions, which processors without them run by amx_emulator.c."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from memrl.policy import kernels


def build_emulator(folder: Path) -> Any:
    """The compiled emulator, not at work yet."""
    compiler, path = shutil.which("cc") or "gcc", folder / "amx_emulator.so"
    source = Path(__file__).with_name("amx_emulator.c")
    flags = ("-std=gnu11", "-O2", "-march=native", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run([compiler, *flags, str(source), "-o", str(path), "-lm"], check=True)
    emulator = ctypes.CDLL(str(path))
    emulator.count_products.restype = ctypes.c_int64
    return emulator


@contextmanager
def open_tiled_kernels(folder: Path) -> Iterator[Any]:
    """The kernels for bfloat16 bases by tiles; checks at the end that tiles were at work.

    Skips where the compiler knows no AMX.
    """
    path = kernels.compile_kernels(kernels.KINDS[torch.bfloat16], kernels.WITH_TILES)
    if path is None:
        pytest.skip("no C compiler here knows AMX")
    library = kernels.open_kernels(path)
    assert library.panel_depth() == 32
    if kernels.request_tiles():
        yield library
        return
    emulator = build_emulator(folder)
    assert emulator.begin_emulation() == 0
    try:
        yield library
        assert emulator.count_products() > 0
    finally:
        emulator.end_emulation()
