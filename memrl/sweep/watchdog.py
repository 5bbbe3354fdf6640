"""Notices that a daemon of Ray has ended: Ray itself says so after a minute, and ends its driver without a word."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_DAEMONS = ("gcs_server", "raylet")

_LOOK_SECONDS = 0.5


@contextmanager
def watch_daemons(on_lost: Callable[[str], None]) -> Iterator[None]:
    """Watches the daemons that this process has started, while the block runs.

    Args:
        on_lost: called, from a thread of its own, with the name of the first one that has ended.
    """
    ended = threading.Event()
    daemons = find_daemons()

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            lost = [name for process, name in daemons.items() if not _is_alive(process)]
            if lost and not ended.is_set():
                on_lost(lost[0])
                return

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def find_daemons() -> Mapping[int, str]:
    """Ray's daemons among this process's children, by process; none where the system has no /proc."""
    daemons = {}
    for path in Path("/proc").glob("[0-9]*"):
        name, _, parent = _read_status(path)
        if parent == str(os.getpid()) and name in _DAEMONS:
            daemons[int(path.name)] = name
    return daemons


def end_processes(folder: Path) -> None:
    """Kills the processes whose command names a folder; none where the system has no /proc."""
    for path in Path("/proc").glob("[0-9]*"):
        if str(folder) in _read(path / "cmdline"):
            with suppress(OSError):
                os.kill(int(path.name), signal.SIGKILL)


def _is_alive(process: int) -> bool:
    return _read_status(Path(f"/proc/{process}"))[1] not in ("", "Z", "X")


def _read_status(process: Path) -> tuple[str, str, str]:
    """A process's name, state and parent; empty where it is gone."""
    # 17 (the name, in brackets that it may hold as well) S 16 ...
    before, _, after = _read(process / "stat").rpartition(")")
    words = after.split()
    return (before.partition("(")[2], words[0], words[1]) if words else ("", "", "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
