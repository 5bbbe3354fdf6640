"""Checkpoints of packs, beside the tables while a sweep runs: with them it goes on where it was ended.

A checkpoint is one file, so that it is there whole or not at all: a zip of what a pack's run saves, whose checksums
tell a damaged one. The packs themselves are listed, too: one that is formed anew of other cells would round otherwise.
"""

import hashlib
import io
import json
import os
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from memrl.config import TrainConfig
from memrl.errors import StartError
from memrl.sweep.scratch import scratch_folder
from memrl.tables.files import find_filesystem, is_local, read_file, remove_file, replace_file

_FOLDER, _PACKS = "checkpoints", "packs.json"

_FIRST_SECONDS = 1.0
_MOST_SECONDS = 30.0
"""A pack leaves a checkpoint at least about this often: no more work than this is lost, whatever happens."""

_MOST_TIME_SAVING = 0.02
"""It does so more often where saving takes no more than this share of the time."""

Pack = Sequence[TrainConfig]


class Checkpoints:
    """The checkpoints of one sweep.

    Args:
        address: of the sweep's tables.
    """

    def __init__(self, address: str) -> None:
        self._filesystem, root = find_filesystem(address)
        self._root = f"{root}/{_FOLDER}"

    def list_packs(self, packs: Sequence[Pack], formed_for: Mapping[str, object]) -> None:
        """Writes down which packs are about to be trained.

        Args:
            packs: the packs.
            formed_for: what decided on them, such as the device; JSON.
        """
        listed = {"formed_for": dict(formed_for), "packs": [[cell.cell_id for cell in pack] for pack in packs]}
        replace_file(self._filesystem, f"{self._root}/{_PACKS}", json.dumps(listed).encode())

    def find_packs(self, cells: Mapping[str, TrainConfig], formed_for: Mapping[str, object]) -> list[list[TrainConfig]]:
        """The packs that an earlier launch has listed, if formed for the same; of cells of this sweep alone."""
        try:
            listed = json.loads(read_file(self._filesystem, f"{self._root}/{_PACKS}"))
        except (OSError, ValueError):
            return []
        if listed["formed_for"] != dict(formed_for):
            return []
        return [[cells[name] for name in pack] for pack in listed["packs"] if cells.keys() >= set(pack)]

    @property
    def are_kept(self) -> bool:
        """Whether the packs are listed, as this process sees the address: a node of a cluster may see another disk."""
        info = self._filesystem.get_file_info(f"{self._root}/{_PACKS}")
        return info.type == fs.FileType.File

    def save(self, pack: Pack, write: Callable[[Path], None]) -> None:
        """Puts a checkpoint in the place of the pack's last one.

        Args:
            pack: all its cells, those that have ended included.
            write: fills a folder.

        Raises:
            OSError: it can't be written; the last one stays.
        """
        content = io.BytesIO()
        with scratch_folder() as folder, zipfile.ZipFile(content, "w") as archive:
            write(folder)
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
        replace_file(self._filesystem, self._path(pack), content.getvalue())

    @contextmanager
    def open(self, pack: Pack) -> Iterator[Path | None]:
        """The folder that was filled for a pack, or for the one it was split from; None: no sound checkpoint."""
        with scratch_folder() as folder:
            try:
                with zipfile.ZipFile(io.BytesIO(read_file(self._filesystem, self._path(pack)))) as archive:
                    archive.extractall(folder)
            except (OSError, zipfile.BadZipFile):
                yield None
                return
            yield folder

    def split(self, pack: Pack, parts: Sequence[Pack]) -> None:
        """Leaves a pack's checkpoint to packs of some of its cells, each of which takes up what is its own."""
        with suppress(OSError):
            content = read_file(self._filesystem, self._path(pack))
            for part in parts:
                replace_file(self._filesystem, self._path(part), content)
        self.remove(pack)

    def remove(self, pack: Pack) -> None:
        """Removes a pack's checkpoint, where there is one, and the folder of them all with the last one."""
        with suppress(OSError):
            remove_file(self._filesystem, self._path(pack))
        if is_local(self._filesystem):
            with suppress(OSError):
                os.rmdir(self._root)

    def clear(self) -> None:
        """Removes them all: the sweep has come to its end."""
        if self._filesystem.get_file_info(self._root).type == fs.FileType.Directory:
            self._filesystem.delete_dir(self._root)

    def _path(self, pack: Pack) -> str:
        name = hashlib.sha256(" ".join(cell.cell_id for cell in pack).encode()).hexdigest()[:16]
        return f"{self._root}/pack-{name}.zip"


class Saver:
    """Leaves the checkpoints of one pack, at such times that little work would be lost, and little time is spent on it.

    Args:
        checkpoints: where they lie; None: nowhere.
        pack: all its cells.
    """

    def __init__(self, checkpoints: Checkpoints | None, pack: Pack) -> None:
        self._checkpoints, self._pack = checkpoints, pack
        self._next = time.monotonic() + _FIRST_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return self._checkpoints is not None and time.monotonic() >= self._next

    def save(self, write: Callable[[Path], None]) -> None:
        """Leaves a checkpoint; see `Checkpoints.save`. A disk or a memory that takes none is no reason to stop."""
        if self._checkpoints is None:
            return
        begun = time.monotonic()
        try:
            self._checkpoints.save(self._pack, write)
        except (OSError, MemoryError, StartError):
            traceback.print_exc()
        ended = time.monotonic()
        self._next = ended + min(_MOST_SECONDS, (ended - begun) / _MOST_TIME_SAVING)
