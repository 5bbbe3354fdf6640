"""Whole sweeps on this machine's Ray: to the end, over a finished one, stopped by Ctrl-C, and gone on with."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launching import DEADLINE_S, finish, read, start

from memrl.tables.store import TableStore


@pytest.fixture
def folder(tmp_path) -> Path:
    # Workers leave nothing of their own here: all that is written is below results/.
    return tmp_path


def test_a_sweep_runs_to_its_end_and_a_second_one_finds_it_finished(folder):
    words = ["N=8,16", "seeds=2", "learning_rate=3e-3", "pack_size=8", "n_steps=120"]
    process = start(folder, *words)
    output = finish(process)
    assert process.returncode == 0, output
    cells, curves = read(folder)
    assert len(cells) == 2 * 7 * 2
    assert cells["cell_id"].is_unique
    assert not cells["status"].eq("failed").any()
    assert (cells["status"] == "memorized").mean() > 0.5
    assert set(curves["cell_id"]) == set(cells["cell_id"])
    assert not curves.duplicated(["cell_id", "update"]).any()
    updates = curves.groupby("cell_id")["update"].max()
    assert updates.equals(cells.set_index("cell_id")["updates"].sort_index().astype(updates.dtype).rename("update"))
    for text in ("Episodes to memorize", "per bit", "binary, multi-step", "results/smoke/curves"):
        assert text in output
    assert "Traceback" not in output
    assert sorted(path.name for path in folder.iterdir()) == ["results"]

    before = cells["created"].tolist()
    again = start(folder, *words)
    output = finish(again)
    assert again.returncode == 0, output
    assert output.startswith("smoke: all 28 cells were finished already")
    assert "Episodes to memorize" in output
    assert read(folder)[0]["created"].tolist() == before


def test_a_sweep_stops_rates_that_nobody_could_choose_and_trains_them_to_the_end_when_asked(folder):
    words = ["N=4", "seeds=2", "reward_type=binary", "env_type=single_step", "learning_rate=3e-3,1e-9", "n_steps=1500"]
    process = start(folder, *words, "stop_conditions=True")
    output = finish(process)
    assert process.returncode == 0, output
    cells, _ = read(folder)
    assert cells.groupby("learning_rate")["status"].agg(set).to_dict() == {3e-3: {"memorized"}, 1e-9: {"stopped"}}
    assert cells.loc[cells["status"] == "stopped", "updates"].between(30, 900).all()
    page = (folder / "results" / "smoke" / "report.html").read_text()
    assert "2 runs were stopped once neither half of the secrets could choose the learning rate any more" in page
    finished = start(folder, *words, "stop_conditions=True")
    assert finish(finished).startswith("smoke: all 4 cells were finished already")
    whole = start(folder, *words)
    finish(whole)
    again, _ = read(folder)
    assert again.groupby("learning_rate")["updates"].max()[1e-9] == 1500
    assert not again["status"].eq("stopped").any()


def test_ctrl_c_keeps_what_has_finished_and_the_same_command_goes_on(folder):
    # One pack: four cells end within seconds, and four would go on for an hour.
    words = ["N=4", "seeds=4", "reward_type=binary", "env_type=single_step", "learning_rate=3e-3,1e-9"]
    process = start(folder, *words, "n_steps=100000", "num_trials=1")
    store = TableStore(str(folder / "results" / "smoke"))
    deadline = time.monotonic() + DEADLINE_S
    while not store.finished_cell_ids() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    kept = store.finished_cell_ids()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130, output
    assert 1 <= len(kept) < 8
    assert "Stopped; what has finished is kept. To go on: " in output
    assert "python sweeps/launch.py grid=smoke N=4 seeds=4" in output
    assert "Traceback" not in output
    assert kept <= store.finished_cell_ids()
    cells, curves = read(folder)
    assert set(curves["cell_id"]) == set(cells["cell_id"])


def find_trials(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The launcher's descendants that Ray calls trials: by the class, or by what Tune makes of it."""
    found = []
    for process in psutil.Process(launcher.pid).children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if "ray::PackTrial" in title or "ray::ResourceTrainable" in title:
                found.append(process)
    return found


def find_open_ports(processes: list[psutil.Process]) -> set[str]:
    """The addresses on which these processes listen."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_a_trial_that_dies_is_started_again_and_sigterm_leaves_a_checkpoint(folder):
    # One pack: two cells end within seconds, and two would go on for an hour.
    words = ["N=4", "seeds=2", "reward_type=binary", "env_type=single_step", "learning_rate=3e-3,1e-9"]
    process = start(folder, *words, "n_steps=100000", "num_trials=1")
    trials: list[psutil.Process] = []
    deadline = time.monotonic() + 2 * DEADLINE_S
    while len(trials) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        for trial in find_trials(process):
            if trial not in trials:
                trials.append(trial)
                ports = find_open_ports(psutil.Process(process.pid).children(recursive=True))
                assert {"127.0.0.1", "::ffff:127.0.0.1"} >= ports > set()
                if len(trials) == 1:
                    trial.kill()
    store = TableStore(str(folder / "results" / "smoke"))
    while len(store.finished_cell_ids()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    output = finish(process)
    assert process.returncode == 143, output
    assert "python sweeps/launch.py grid=smoke N=4 seeds=2" in output.partition("To go on: ")[2]
    cells, curves = read(folder)
    assert cells["status"].tolist() == ["memorized"] * 2
    assert not curves.duplicated(["cell_id", "update"]).any()
    assert len(list((folder / "results" / "smoke" / "checkpoints").glob("pack-*.zip"))) == 1
