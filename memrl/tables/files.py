"""Files of results, at any address: found, read whole, and replaced whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from pyarrow import fs

from memrl.errors import tell_error

_PYARROW_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "abfs")


def find_filesystem(address: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of an address, and the address's path there.

    Args:
        address: a folder, or an address that pyarrow or fsspec knows, such as `s3://bucket/folder`.

    Raises:
        ValueError: no filesystem is known for it.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        return fs.LocalFileSystem(), str(Path(os.path.expanduser(address)).absolute())
    try:
        if scheme in _PYARROW_SCHEMES:
            filesystem, root = fs.FileSystem.from_uri(address)
        else:
            handler, root = fsspec.core.url_to_fs(address)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(handler))
    except (ValueError, ImportError, NotImplementedError, OSError) as error:
        raise ValueError(
            f"results must be a folder or an address such as s3://, got {address!r} ({tell_error(error)})"
        ) from error
    return filesystem, root.rstrip("/")


def is_local(filesystem: fs.FileSystem) -> bool:
    """Whether its files lie on this machine, with renames, locks and fsync."""
    return isinstance(filesystem, fs.LocalFileSystem)


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """All of a file.

    Raises:
        OSError: it can't be read; FileNotFoundError where it is not there.
    """
    with filesystem.open_input_stream(path) as file:
        return file.read()


def replace_file(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file, in place of what was there, so that a reader sees the old one or the new one, and never a half.

    An object store takes a file whole. On a disk it is written under a hidden name, forced to the disk, and renamed,
    and then the folder is forced to the disk: after a power cut the file is there whole, or as it was before.

    Raises:
        OSError: it can't be written; nothing is left of the attempt.
    """
    folder, _, name = path.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    if not is_local(filesystem):
        with filesystem.open_output_stream(path) as file:
            file.write(content)
        return
    hidden = Path(folder, f".{name}.tmp")
    try:
        _write_through(hidden, content)
        hidden.replace(path)
    except BaseException:
        with suppress(OSError):
            hidden.unlink()
        raise
    with _open_folder(folder) as descriptor:
        os.fsync(descriptor)


def remove_file(filesystem: fs.FileSystem, path: str) -> None:
    """Removes a file; one that is gone already is no error."""
    with suppress(FileNotFoundError):
        if is_local(filesystem):
            os.unlink(path)
        else:
            filesystem.delete_file(path)


def remove_leftovers(folder: Path) -> None:
    """Removes the hidden files that a writer left that was killed; the caller knows that no writer is alive."""
    for hidden in folder.glob(".*.tmp"):
        with suppress(OSError):
            hidden.unlink()


def _write_through(path: Path, content: bytes) -> None:
    """Makes a file that is on the disk when this returns; what stood under its name, a link too, goes first."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


@contextmanager
def _open_folder(folder: str) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
