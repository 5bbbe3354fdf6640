"""Locks of a results folder: files that the system frees with the process that holds them, however it ends."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_EVERYTHING = ".lock"


@contextmanager
def hold_folder(folder: Path, cell_id: str | None = None) -> Iterator[Callable[[], None]]:
    """Keeps other writers out of a results folder while the block runs.

    Yields what is to be called before each change: where the file of a lock was removed, it takes the lock anew.
    It raises a ValueError where another process has done so before, and an OSError where there can be no file.

    Args:
        folder: it exists.
        cell_id: the one cell that will be written, so that others may write other cells at the same time; None keeps
            every other writer out.

    Raises:
        ValueError: another process writes there, or the file of the lock is a link or a folder, or can't be written.
    """
    with ExitStack() as stack:
        if cell_id is None:
            locks = [stack.enter_context(_Lock(folder / _EVERYTHING, fcntl.LOCK_EX | fcntl.LOCK_NB))]
            # Nobody holds a cell's lock without holding the folder's: these files are of processes that were killed.
            for left in folder.glob(f"{_EVERYTHING}-*"):
                left.unlink(missing_ok=True)
        else:
            locks = [stack.enter_context(_Lock(folder / _EVERYTHING, fcntl.LOCK_SH | fcntl.LOCK_NB))]
            path = folder / f"{_EVERYTHING}-{cell_id}"
            locks.append(stack.enter_context(_Lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)))
            stack.callback(path.unlink, missing_ok=True)

        def renew() -> None:
            for lock in locks:
                lock.renew()

        yield renew


@contextmanager
def hold_rewriting(folder: Path) -> Iterator[None]:
    """Waits for its turn to rewrite parts that others wrote; among writers of single cells, one does so at a time.

    Raises:
        ValueError: the file of the lock is a link or a folder, or can't be written.
    """
    with _Lock(folder / ".rewriting", fcntl.LOCK_EX):
        yield


class _Lock:
    """The lock of a file, held until the block or the process ends."""

    def __init__(self, path: Path, how: int) -> None:
        self._path, self._how = path, how
        self._descriptor = _take(path, how)

    def __enter__(self) -> "_Lock":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def renew(self) -> None:
        """Takes the lock again where its file is gone, or another in its place."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._descriptor), os.lstat(self._path)):
                return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        taken = _take(self._path, self._how)
        os.close(self._descriptor)
        self._descriptor = taken


def _take(path: Path, how: int) -> int:
    """The descriptor of a file with its lock."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"results must be free, got {path.parent}, which a running sweep or run writes") from None
    except OSError as error:
        text = "%s can't be locked (%s): start no second writer here"
        logging.getLogger(__name__).warning(text, path, error.strerror)
    return descriptor


def _open(path: Path) -> int:
    """Opens the file of a lock: never through a link, and without touching what it holds."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise ValueError(f"{path} must be a plain file that can be written, got {error.strerror}") from error
