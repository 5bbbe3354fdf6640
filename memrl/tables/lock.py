"""Locks of a results folder: files that the system frees with the process that holds them, however it ends."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_EVERYTHING = ".lock"


@contextmanager
def hold_folder(folder: Path, cell_id: str | None = None) -> Iterator[None]:
    """Keeps other writers out of a results folder while the block runs.

    Args:
        folder: it exists.
        cell_id: the one cell that will be written, so that others may write other cells at the same time; None keeps
            every other writer out.

    Raises:
        ValueError: another process writes there, or the file of the lock is a link or a folder, or can't be written.
    """
    with ExitStack() as stack:
        if cell_id is None:
            stack.enter_context(_hold(folder / _EVERYTHING, fcntl.LOCK_EX | fcntl.LOCK_NB))
            # Nobody holds a cell's lock without holding the folder's: these files are of processes that were killed.
            for left in folder.glob(f"{_EVERYTHING}-*"):
                left.unlink(missing_ok=True)
        else:
            stack.enter_context(_hold(folder / _EVERYTHING, fcntl.LOCK_SH | fcntl.LOCK_NB))
            path = folder / f"{_EVERYTHING}-{cell_id}"
            stack.enter_context(_hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
            stack.callback(path.unlink, missing_ok=True)
        yield


@contextmanager
def hold_rewriting(folder: Path) -> Iterator[None]:
    """Waits for its turn to rewrite parts that others wrote; among writers of single cells, one does so at a time.

    Raises:
        ValueError: the file of the lock is a link or a folder, or can't be written.
    """
    with _hold(folder / ".rewriting", fcntl.LOCK_EX):
        yield


@contextmanager
def _hold(path: Path, how: int) -> Iterator[None]:
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise ValueError(f"results must be free, got {path.parent}, which a running sweep or run writes") from None
        except OSError as error:
            text = "%s can't be locked (%s): start no second writer here"
            logging.getLogger(__name__).warning(text, path, error.strerror)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Opens the file of a lock: never through a link, and without touching what it holds."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise ValueError(f"{path} must be a plain file that can be written, got {error.strerror}") from error
