"""Folders for what a sweep needs while it runs: of the user's alone, and gone with the process, however that ends."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memrl.errors import StartError

_NAME = re.compile(r"memrl-(\d+)-\w+")


@contextmanager
def scratch_folder(most_bytes: int | None = None) -> Iterator[Path]:
    """A folder below the system's temporary one, removed after the block.

    Folders that processes of this user left there which have been killed are removed as well.

    Args:
        most_bytes: the longest path that will do, for sockets; where the temporary folder's is longer, `/tmp` or
            another of the system's takes its place.

    Raises:
        StartError: no such folder can be made.
    """
    base = find_base(most_bytes)
    remove_leftovers(base)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"memrl-{os.getpid()}-", dir=base))
    except OSError as error:
        raise StartError(f"TMPDIR must name a folder that can be written, got {base} ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_base(most_bytes: int | None = None) -> Path:
    """The first of the system's temporary folders in which a scratch folder's path is short enough.

    Raises:
        StartError: there is none.
    """
    longest_name = len(f"/memrl-{os.getpid()}-") + 8
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        fits = most_bytes is None or len(os.fsencode(base)) + longest_name <= most_bytes
        if fits and os.access(base, os.W_OK | os.X_OK):
            return Path(base)
    raise StartError(f"TMPDIR must name a folder whose path is short, got {tempfile.gettempdir()}; set TMPDIR=/tmp")


def remove_leftovers(base: Path) -> None:
    """Removes scratch folders of this user whose process is gone."""
    for path in base.glob("memrl-*"):
        name = _NAME.fullmatch(path.name)
        with suppress(OSError):
            if name and path.lstat().st_uid == os.getuid() and not _is_running(int(name[1])):
                shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
