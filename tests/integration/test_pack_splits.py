"""Packs that can't go on as they are, in whole sweeps: their cells go on in halves, to the numbers of others.

A cell whose reward ends the process fails alone; where memory ends, none does.
"""

from pathlib import Path

import pandas as pd
import pytest
from launching import finish, read, start

WORDS = ["N=8", "seeds=1", "env_type=single_step", "n_steps=60", "num_trials=1"]
COLUMNS = ["cell_id", "status", "e50", "e90", "episodes", "updates", "tokens"]

FRAGILE = """
import os

calls = 0

def end_process(guess, secret, N):
    global calls
    calls += 1
    if calls > 3:
        os._exit(137)
    return (guess == secret).astype(float)
"""

SCARCE = """
from pathlib import Path

walks = 0

def exact(guess, secret, N):
    return (guess == secret).astype(float)

if b"ray::" in Path("/proc/self/cmdline").read_bytes():
    from memrl.learning import update

    walk = update.walk_tries

    def walk_while_memory_lasts(network, forest, num_episodes, *rest):
        global walks
        walks += 1
        if len(num_episodes) > 2 and walks > 3:
            print("no memory for", len(num_episodes), "cells", flush=True)
            raise MemoryError(f"no room for {len(num_episodes)} cells")
        return walk(network, forest, num_episodes, *rest)

    update.walk_tries = walk_while_memory_lasts
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pd.DataFrame:
    """The cells of a sweep of sound channels."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder, *WORDS, "reward_type=binary,distance")
    output = finish(process)
    assert process.returncode == 0, output
    return read(folder)[0]


def check_sound_cells(cells: pd.DataFrame, curves: pd.DataFrame, undisturbed: pd.DataFrame) -> None:
    sound = cells[cells["reward_type"].isin(["binary", "distance"])]
    assert sound[COLUMNS].to_numpy().tolist() == undisturbed[COLUMNS].to_numpy().tolist()
    assert not cells.duplicated("cell_id").any()
    assert not curves.duplicated(["cell_id", "update"]).any()


def sweep_beside(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, function: str) -> tuple[int | None, str]:
    """Sweeps the sound channels and one more, a function in a module of its own; returns exit code and output."""
    (folder / "own.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    process = start(folder, *WORDS, f"reward_type=binary,distance,own:{function}")
    output = finish(process)
    assert "Traceback" not in output
    return process.returncode, output


@pytest.mark.slow
def test_a_reward_that_ends_its_process_fails_its_cell_alone(tmp_path, monkeypatch, undisturbed):
    exit_code, output = sweep_beside(tmp_path, monkeypatch, FRAGILE, "end_process")
    assert exit_code == 1, output
    assert "the baseline agents can't play: own:end_process: " in output
    cells, curves = read(tmp_path)
    check_sound_cells(cells, curves, undisturbed)
    (failed,) = cells[cells["status"] == "failed"].to_dict("records")
    assert failed["reward_type"] == "own:end_process"
    assert failed["error"].startswith("the trial died: its process was killed, or ended by itself")


@pytest.mark.slow
def test_where_memory_ends_a_pack_goes_on_in_halves_and_no_cell_fails(tmp_path, monkeypatch, undisturbed):
    exit_code, output = sweep_beside(tmp_path, monkeypatch, SCARCE, "exact")
    assert exit_code == 0, output
    check_sound_cells(*read(tmp_path), undisturbed)
    logs = [path.read_text() for path in (tmp_path / "results" / "smoke" / "logs").glob("*.log")]
    assert sum(log.count("no memory for 3 cells") for log in logs) == 1, "it is not tried again as it was"
