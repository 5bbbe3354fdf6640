"""A cell whose reward ends the process, in a whole sweep: it fails alone, and costs no other cell anything."""

import pytest
from launching import finish, read, start

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


@pytest.mark.chaos
def test_a_reward_that_ends_its_process_fails_its_cell_alone(tmp_path, monkeypatch):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["N=8", "seeds=1", "env_type=single_step", "n_steps=60", "num_trials=1"]
    process = start(tmp_path, *words, "reward_type=binary,distance,fragile:end_process")
    output = finish(process)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert "the baseline agents can't play: fragile:end_process@" in output
    cells, curves = read(tmp_path)
    statuses = {row["reward_type"]: row["status"] for row in cells.to_dict("records")}
    assert statuses == {"binary": "memorized", "distance": "memorized", "fragile:end_process": "failed"}
    (error,) = cells[cells["status"] == "failed"]["error"]
    assert error.startswith("the trial died: its process was killed, or ended by itself")

    process = start(tmp_path, *words, "reward_type=binary,distance", "results=alone")
    assert process.wait(300) == 0
    process.communicate()
    alone, _ = read(tmp_path, "alone")
    columns = ["cell_id", "e50", "e90", "episodes", "updates", "tokens"]
    sound = cells[cells["status"] == "memorized"]
    assert sound[columns].to_numpy().tolist() == alone[columns].to_numpy().tolist()
    assert not curves.duplicated(["cell_id", "update"]).any()
