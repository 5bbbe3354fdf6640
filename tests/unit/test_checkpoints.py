"""Checkpoints of packs: there whole or not at all, and only for the packs that an earlier launch has formed."""

import pytest

from memrl.config import TrainConfig
from memrl.sweep.checkpoints import Checkpoints

CELLS = {cell.cell_id: cell for cell in (TrainConfig(N=4, seed=seed) for seed in range(6))}
PACKS = [list(CELLS.values())[:4], list(CELLS.values())[4:]]
FORMED_FOR = {"device": "cpu", "pack_size": None}


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(str(tmp_path))


def fill(text):
    def write(folder):
        (folder / "half_0").mkdir()
        (folder / "half_0" / "state").write_text(text)

    return write


def test_a_checkpoint_takes_the_place_of_the_last_one_of_its_pack(checkpoints):
    checkpoints.save(PACKS[0], fill("first"))
    checkpoints.save(PACKS[1], fill("other"))
    checkpoints.save(PACKS[0], fill("second"))
    with checkpoints.open(PACKS[0]) as folder:
        assert (folder / "half_0" / "state").read_text() == "second"
    with checkpoints.open(PACKS[1]) as folder:
        assert (folder / "half_0" / "state").read_text() == "other"


def test_a_failed_write_leaves_the_last_checkpoint_as_it_was(checkpoints):
    checkpoints.save(PACKS[0], fill("first"))

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(PACKS[0], fail)
    with checkpoints.open(PACKS[0]) as folder:
        assert (folder / "half_0" / "state").read_text() == "first"


@pytest.mark.parametrize("damage", ["none", "cut", "flipped", "empty"])
def test_a_checkpoint_that_is_not_sound_is_none(checkpoints, tmp_path, damage):
    if damage != "none":
        checkpoints.save(PACKS[0], fill("x" * 1000))
        (path,) = (tmp_path / "checkpoints").glob("pack-*.zip")
        content = bytearray(path.read_bytes())
        content[500] ^= 1
        path.write_bytes({"cut": content[:700], "flipped": content, "empty": b""}[damage])
    with checkpoints.open(PACKS[0]) as folder:
        assert folder is None


def test_the_packs_of_an_earlier_launch_are_found_as_they_were_formed(checkpoints):
    assert checkpoints.find_packs(CELLS, FORMED_FOR) == []
    assert not checkpoints.are_kept
    checkpoints.list_packs(PACKS, FORMED_FOR)
    assert checkpoints.are_kept
    assert checkpoints.find_packs(CELLS, FORMED_FOR) == PACKS
    assert checkpoints.find_packs(CELLS, FORMED_FOR | {"pack_size": 2}) == []
    fewer = {cell_id: cell for cell_id, cell in CELLS.items() if cell != PACKS[0][1]}
    assert checkpoints.find_packs(fewer, FORMED_FOR) == PACKS[1:]


def test_nothing_is_left_once_a_sweep_has_come_to_its_end(checkpoints, tmp_path):
    checkpoints.clear()
    checkpoints.list_packs(PACKS, FORMED_FOR)
    checkpoints.save(PACKS[0], fill("first"))
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []
