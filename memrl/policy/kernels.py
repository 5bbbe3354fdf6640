"""Compiles kernels.c for this machine, once, and makes its functions callable with tensors."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from memrl.policy.cache import list_cache_folders

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.c", "products.h")]
"""What is compiled, and what it includes."""

_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_ATTEMPTS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Not every compiler knows all of the processor, or threads; the first attempt that works is taken."""

_REAL = {torch.float32: "-DREAL=float", torch.float64: "-DREAL=double"}
"""Of a base model's dtypes: the type of numbers of products.h."""

_Int, _Pointer = ctypes.c_int64, ctypes.c_void_p

PerLayer = _Int * 3
"""One number for each of the siblings that read one input: queries, keys and values at most."""

ACTIVATIONS = (
    *("x", "inverse1", "low_qkv", "qkv_out", "raw_qk", "inverse_qk", "log_sum", "mixed", "low_o", "middle"),
    *("inverse2", "low_gate_up", "gate_up_out", "low_down"),
)
"""What a layer keeps for its backward pass, as kernels.c has it."""

OUTPUTS = (
    *("x", "final", "inverse", "normed", "gated"),
    *("grad", "grad_normed", "grad_mixed", "grad_gated", "grad_qkv", "grad_low"),
)
"""What the decoder keeps beside its layers, as kernels.c has it."""


class Linear(ctypes.Structure):
    """Layers that read the same input. Like all structures here it holds addresses, whose tensors others keep alive."""

    _fields_ = (
        ("num_layers", _Int),
        ("d_in", _Int),
        ("d_out", _Int),
        ("widths", PerLayer),
        ("start_A", PerLayer),
        ("start_B", PerLayer),
        ("panels", _Pointer),
    )


class Adapters(ctypes.Structure):
    """What all adapters of a pack share."""

    _fields_ = (
        ("cells", _Int),
        ("rank", _Int),
        ("num_parameters", _Int),
        ("ranks", _Pointer),
        ("scale", _Pointer),
        ("parameters", _Pointer),
        ("gradient", _Pointer),
    )


class Norm(ctypes.Structure):
    """A root-mean-square norm."""

    _fields_ = (("vectors", _Int), ("d", _Int), ("epsilon", ctypes.c_double), ("weight", _Pointer))


class Layer(ctypes.Structure):
    """One decoder layer and its activations."""

    _fields_ = (
        *((name, Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, Norm) for name in ("norm1", "norm2", "norm_qk")),
        *((name, _Pointer) for name in ACTIVATIONS),
    )


class Decoder(ctypes.Structure):
    """A decoder, the rows that are fed to it, and its adapters."""

    _fields_ = (
        *((name, _Int) for name in ("num_layers", "d", "heads", "kv_heads", "d_head", "longest")),
        ("scaling", ctypes.c_double),
        ("layers", ctypes.POINTER(Layer)),
        ("adapters", ctypes.POINTER(Adapters)),
        ("norm", Norm),
        *((name, _Pointer) for name in ("cosines", "sines", "parent", "position", *OUTPUTS)),
    )


class _Address:
    """A dense tensor or array as an argument."""

    @classmethod
    def from_param(cls, array: torch.Tensor | np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


@cache
def load_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The functions of kernels.c for base models of one dtype, compiled on first use into the user's cache.

    Args:
        dtype: float32 or float64.

    Returns:
        a library whose functions take tensors, numbers and the structures of this module; None where the dtype is
        another, no C compiler works here, or there is no place of the user's own for what it makes.
    """
    if dtype not in _REAL:
        return None
    folder = next(filter(_is_safe, list_cache_folders()), None)
    path = folder and _compile_kernels(_REAL[dtype], folder)
    if path is None:
        places = " nor ".join(map(str, list_cache_folders()))
        reason = (
            "no C compiler works here" if folder else f"neither {places} is one's own, writable, and may hold programs"
        )
        logging.getLogger(__name__).warning("%s: packs train several times slower", reason)
        return None
    library, decoder = ctypes.CDLL(str(path)), ctypes.POINTER(Decoder)
    for function, arguments in {
        "panel_columns": (),
        "forward": (decoder, _Int, _Int, _Address),
        "backward": (decoder, _Int, _Int, _Address),
        "update_adam": (_Int, _Int, *(_Address,) * 5),
        "gate": (_Int, _Int, _Address, _Address),
        "gate_backward": (_Int, _Int, _Address, _Address),
    }.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = _Int if function.startswith("panel_") else None
    return library


def _compile_kernels(real: str, folder: Path) -> Path | None:
    """The compiled file for one type of numbers, by the first attempt that works; None if no compiler makes one."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    for extra in _ATTEMPTS:
        flags = (*_FLAGS, *extra, real)
        target = folder / f"kernels-{_identify(compiler, flags)}.so"
        if target.is_file() and target.stat().st_uid == os.getuid():
            return target
        if compiler is None:
            continue
        # Processes that start together each compile; the last rename wins, and all are the same file.
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".so", delete=False) as scratch:
            command = [compiler, *flags, str(SOURCES[0]), "-o", scratch.name, "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            os.replace(scratch.name, target)
            return target
        os.unlink(scratch.name)
    return None


def _is_safe(folder: Path) -> bool:
    """Whether a folder, made if need be, may hold programs, and this user alone can put them there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, may_run = folder.stat(), not os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError:
        return False
    is_own = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_own and may_run and os.access(folder, os.W_OK)


def _identify(compiler: str | None, flags: tuple[str, ...]) -> str:
    """Changes with whatever changes the compiled file: machines that share a home may differ in their processor."""
    texts = (source.read_text("utf-8") for source in SOURCES)
    parts = (*texts, str(compiler), *flags, platform.machine(), _describe_processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _describe_processor() -> str:
    """What the processor can do, in the system's words."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
