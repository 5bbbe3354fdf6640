"""Who may write a results folder, and when."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from memrl.errors import WriteError
from memrl.tables.store import TableStore

HOLD = """
import sys, time
from memrl.tables.store import TableStore
with TableStore(sys.argv[1]).open_for_writing(*sys.argv[2:]):
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start_writer(tmp_path):
    """Starts another process that writes the folder: everything, or one cell."""
    processes = []

    def start(*cell_id: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(tmp_path), *cell_id]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "holding\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def opens(folder, cell_id: str | None = None) -> bool:
    try:
        with TableStore(str(folder)).open_for_writing(cell_id):
            return True
    except ValueError as error:
        return "which a running sweep or run writes" not in str(error)


def test_who_writes_everything_keeps_everyone_out(start_writer, tmp_path):
    start_writer()
    assert not opens(tmp_path)
    assert not opens(tmp_path, "a")


def test_who_writes_one_cell_keeps_out_those_who_write_it_too(start_writer, tmp_path):
    start_writer("a")
    assert not opens(tmp_path)
    assert not opens(tmp_path, "a")
    assert opens(tmp_path, "b")


@pytest.mark.parametrize("cell_id", [(), ("a",)])
def test_a_killed_writer_leaves_no_lock(start_writer, tmp_path, cell_id):
    writer = start_writer(*cell_id)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert opens(tmp_path, *cell_id)
    assert opens(tmp_path)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".lock-")] == []


@pytest.mark.parametrize("name", [".lock", ".lock-a"])
def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_stays(tmp_path, name):
    folder, target = tmp_path / "results", tmp_path / "precious"
    TableStore(str(folder)).create()
    target.write_text("12345678")
    (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match="must be a plain file"), TableStore(str(folder)).open_for_writing("a"):
        pass
    assert target.read_text() == "12345678"


def test_a_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ValueError, match="must be a plain file"), TableStore(str(tmp_path)).open_for_writing():
        pass


def test_a_lock_is_free_after_its_block_failed(tmp_path):
    with pytest.raises(KeyError), TableStore(str(tmp_path)).open_for_writing():
        raise KeyError
    assert opens(tmp_path)


@pytest.mark.parametrize("cell_id", [None, "a"])
def test_a_lock_whose_file_is_removed_is_taken_again_with_the_next_change(tmp_path, cell_id):
    store = TableStore(str(tmp_path))
    with store.open_for_writing(cell_id):
        for lock in tmp_path.glob(".lock*"):
            lock.unlink()
        store.append("curves", [])
        assert not opens(tmp_path)
        assert not opens(tmp_path, "a")
    assert opens(tmp_path)


@pytest.mark.parametrize("cell_id", [None, "a"])
def test_who_came_in_past_a_removed_lock_keeps_its_first_holder_out(start_writer, tmp_path, cell_id):
    store = TableStore(str(tmp_path))
    with store.open_for_writing(cell_id):
        (tmp_path / ".lock").unlink()
        start_writer()
        for change in (lambda: store.append("curves", []), lambda: store.drop_cells(["a"]), store.compact):
            with pytest.raises(
                WriteError, match=r"^results must be free, got .+, which a running sweep or run writes$"
            ):
                change()


def test_a_disk_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    # Such a disk can't be mounted here: the system's answer stands in for one.
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert opens(tmp_path)
    (record,) = caplog.records
    assert (
        record.getMessage() == f"{tmp_path / '.lock'} can't be locked (No locks available): start no second writer here"
    )
