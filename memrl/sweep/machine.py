"""What this machine lets this process use, counted without loading a driver or starting anything."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

Names = tuple[str, ...]
"""Of files."""


def count_local_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those it may run on, and no more than its control groups' quotas pay for.

    Args:
        root: of the file system.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(quota) for quota in _read_quotas(root))]))


def count_local_memory(root: Path = Path("/")) -> float:
    """Bytes of memory that this process may use: those of the machine, and no more than its control groups allow.

    Infinite where the system does not say.

    Args:
        root: of the file system.
    """
    lines = [line.split() for line in _read(root / "proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    limits = _read_groups(root, "memory", ("memory.max",), ("memory.limit_in_bytes",))
    return min([math.inf, *(1024.0 * int(line[1]) for line in lines), *(float(words[0]) for words in limits)])


def _read_quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group above this process may use at most."""
    for words in _read_groups(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if len(words) == 2:
            yield int(words[0]) / int(words[1])


def _read_groups(root: Path, controller: str, names: Names, names_of_old: Names) -> Iterator[list[str]]:
    """The words of a controller's files in each control group above this process that has a limit.

    Args:
        root: of the file system.
        controller: cpu or memory.
        names: the files.
        names_of_old: those of the first version of control groups.
    """
    mount = root / "sys/fs/cgroup"
    for _, controllers, path in (line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()):
        if controllers == "":
            files, base = names, mount
        elif controller in controllers.split(","):
            files, base = names_of_old, mount / controllers
        else:
            continue
        # In a container the group's own path may lie outside of what is mounted, which then starts at the group itself.
        own = Path(path.lstrip("/"))
        for group in dict.fromkeys((base, *(base / above for above in (own, *own.parents)))):
            words = " ".join(_read(group / name) for name in files).split()
            if words and words[0] not in ("max", "-1"):
                yield words


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def count_local_gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that this process may use: those that CUDA_VISIBLE_DEVICES names, where there are any at all.

    Args:
        devices: the folder of the system's devices.
    """
    there = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Under Windows' Linux, GPUs have no files of their own.
    if visible is None or not (there or (devices / "dxg").exists()):
        return there
    count = 0
    for name in (name.strip() for name in visible.split(",")):
        # As CUDA reads it: a number without a device ends the list; other names are of parts of GPUs.
        if name in ("", "-1") or (name.isdigit() and there and int(name) >= there):
            break
        count += 1
    return count
