"""Compiles kernels.c for this machine, once, and makes its functions callable with tensors."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("kernels.c")

_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_ATTEMPTS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Not every compiler knows all of the processor, or threads; the first attempt that works is taken."""

_REALS = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}

PerLayer = ctypes.c_int64 * 4
"""One number for each layer of a group, of which there are at most so many; kernels.c says the same."""


class Group(ctypes.Structure):
    """Layers that read the same input, and where each one's adapter lies in a cell's parameters."""

    _fields_ = (
        ("num_layers", ctypes.c_int64),
        ("d_in", ctypes.c_int64),
        ("d_out", ctypes.c_int64),
        ("widths", PerLayer),
        ("start_A", PerLayer),
        ("start_B", PerLayer),
    )


class Adapters(ctypes.Structure):
    """What all adapters of a pack share. It holds addresses: who fills it keeps the tensors alive."""

    _fields_ = (
        ("cells", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("num_parameters", ctypes.c_int64),
        ("ranks", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
    )


class Attention(ctypes.Structure):
    """The shape of an attention layer; `longest` is the most positions that a token can see."""

    _fields_ = (
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("d_head", ctypes.c_int64),
        ("longest", ctypes.c_int64),
        ("scaling", ctypes.c_double),
    )


class _Address:
    """A tensor argument, dense; None is a null pointer."""

    @classmethod
    def from_param(cls, tensor: torch.Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@cache
def load_kernels(dtype: torch.dtype) -> Any:
    """The functions of kernels.c for numbers of one dtype, compiled on first use into the user's cache.

    Args:
        dtype: float32 or float64.

    Returns:
        a library whose functions take tensors, numbers and the structures of this module; None where the dtype is
        another, or no C compiler works here.
    """
    if dtype not in _REALS:
        return None
    name, real = _REALS[dtype]
    path = _compile(name)
    if path is None:
        logging.getLogger(__name__).warning("no C compiler works here: packs train two to three times slower")
        return None
    library = ctypes.CDLL(str(path))
    whole, array, group, adapters, attention = (
        ctypes.c_int64,
        _Address,
        ctypes.POINTER(Group),
        ctypes.POINTER(Adapters),
        ctypes.POINTER(Attention),
    )
    for function, arguments in {
        "adapt": (group, adapters, whole, *(array,) * 4),
        "adapt_backward": (group, adapters, whole, *(array,) * 6),
        "update_adam": (whole, whole, *(array,) * 5),
        "norm": (whole, whole, whole, array, real, array, whole, array, array, whole, array),
        "norm_backward": (whole, whole, whole, *(array,) * 5, whole),
        "rotate": (whole, whole, whole, whole, array, array, array, real, array),
        "attend": (attention, whole, whole, *(array,) * 4),
        "attend_backward": (attention, whole, whole, *(array,) * 6),
        "gate": (whole, whole, array, array),
        "gate_backward": (whole, whole, array, array),
    }.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = None
    return library


def _compile(real: str) -> Path | None:
    """The compiled file of a C type; None if no compiler makes one."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    folder = _cache_folder()
    for extra in _ATTEMPTS:
        flags = (*_FLAGS, *extra, f"-DREAL={real}")
        target = folder / f"kernels-{_identify(compiler, flags)}.so"
        if target.exists():
            return target
        if compiler is None:
            continue
        # Processes that start together each compile; the last rename wins, and all are the same file.
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".so", delete=False) as scratch:
            command = [compiler, *flags, str(SOURCE), "-o", scratch.name, "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            os.replace(scratch.name, target)
            return target
        os.unlink(scratch.name)
    return None


def _cache_folder() -> Path:
    """The user's cache; where that can't be written, a folder of this user's under the temporary one."""
    places = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memrl",
        Path(tempfile.gettempdir()) / f"memrl-{os.getuid()}",
    )
    for place in places:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    raise ValueError(f"one of {' and '.join(map(str, places))} must be writable, to keep the compiled kernels")


def _identify(compiler: str | None, flags: tuple[str, ...]) -> str:
    """Changes with whatever changes the compiled file: machines that share a home may differ in their processor."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    processor = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    parts = (SOURCE.read_text(), str(compiler), *flags, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
