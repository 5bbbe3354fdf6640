"""Thirty processes of a sweep killed at random, whichever they are: it ends in the tables of an undisturbed one.

Which ones, and how long after they have come, follows from a seed, which is printed: with it in `MEMRL_CHAOS_SEED` the
same kills are tried again, as far as a machine's timing lets them meet the same moments.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from launching import ROOT

WORDS = ["grid=smoke", "N=8", "seeds=1", "learning_rate=1e-5", "n_steps=400", "num_trials=1", "pack_size=4"]
SEED, MARK = "MEMRL_CHAOS_SEED", "MEMRL_CHAOS"
TIMES = ["seconds", "created"]
DEADLINE_S = 900.0

PLAN = {
    "trial": 10,
    "agents": 4,
    "log_monitor": 4,
    "launcher SIGINT": 2,
    "launcher SIGTERM": 2,
    "launcher SIGKILL": 2,
    "raylet": 2,
    "gcs_server": 2,
    "ray agent": 2,
}
"""How many processes of each kind are killed, 30 in all. A trial's process is the learner's."""

GOES_ON = {"trial": 2, "agents": 1, "log_monitor": 2}
"""Kinds without which a launch goes on, and how many it can lose: a third death of a trial splits its pack."""

SIGNALS = {"launcher SIGINT": signal.SIGINT, "launcher SIGTERM": signal.SIGTERM}

TITLES = {
    "trial": ("ray::PackTrial", "ray::ResourceTrainable"),
    "agents": ("multiprocessing.spawn",),
    "log_monitor": ("log_monitor.py",),
    "ray agent": ("ray::DashboardAgent", "ray::RuntimeEnvAgent"),
}


@pytest.fixture
def temporary(monkeypatch) -> Iterator[Path]:
    """A temporary folder of this test alone, whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    # Ray's workers stand back for all else that runs, so that on a busy machine hours would go into their starts.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv(MARK, folder.name)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def launch(folder: Path, results: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "sweeps" / "launch.py"), *WORDS, f"results={results}"]
    with (folder / f"{results}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def find(launcher: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """One process of each kind that a launch has running."""
    found: dict[str, psutil.Process] = {}
    with suppress(psutil.Error):
        process = psutil.Process(launcher.pid)
        found |= {kind: process for kind in PLAN if kind.startswith("launcher")}
        for child in process.children(recursive=True):
            for kind in list_kinds(child):
                found.setdefault(kind, child)
    return found


def list_kinds(process: psutil.Process) -> list[str]:
    """Of which kinds a process is: of one, or of none."""
    with suppress(psutil.Error):
        title, name = " ".join(process.cmdline()), process.name()
        return [kind for kind in PLAN if kind == name or any(words in title for words in TITLES.get(kind, ()))]
    return []


def disturb(launcher: subprocess.Popen[bytes], due: list[str], dice: random.Random) -> Counter[str]:
    """Kills processes of a launch, each a random while after it has come, until the launch has ended; counts them."""
    lost = Counter[str]()
    waits_for, begun = dice.choice(("raylet", "trial", "agents")), time.monotonic()
    while launcher.poll() is None and time.monotonic() - begun < DEADLINE_S:
        there = find(launcher)
        kinds = sorted(kind for kind in there.keys() & set(due) if lost[kind] < GOES_ON.get(kind, 1))
        going_on = [kind for kind in kinds if kind in GOES_ON]
        # Of what ends a launch, at some launches while it starts, at others while it trains, or while agents play.
        if not going_on and (waits_for not in there or not kinds):
            time.sleep(0.2)
            continue
        kind = dice.choice(going_on or kinds)
        time.sleep(dice.choice((0.0, 0.5, 1.0, 2.0)))
        with suppress(psutil.Error):
            there[kind].send_signal(SIGNALS.get(kind, signal.SIGKILL))
            lost[kind] += 1
            due.remove(kind)
            print(f"{time.monotonic() - begun:6.1f} s into a launch: {kind}")
        if kind == "launcher SIGKILL":
            launcher.wait()
    return lost


def run_to_the_end(folder: Path, results: str, due: list[str], dice: random.Random) -> None:
    """Launches a sweep until it is through, and kills what is due meanwhile."""
    for _ in range(len(PLAN) + len(due)):
        told = len(read_log(folder, results))
        launcher = launch(folder, results)
        try:
            lost = disturb(launcher, due, dice)
            ended = launcher.wait(1)
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
        print(f"{results}: a launch ended with exit code {ended}, {len(due)} kills to go")
        if ended == 0:
            return
        log = read_log(folder, results)[told:]
        is_to_end = lost.keys() - GOES_ON.keys() or "Ray can't start on this machine" in log
        assert is_to_end, f"it goes on without {[*lost]}:\n{log[-3000:]}"
    pytest.fail(f"no end of launches:\n{read_log(folder, results)[-3000:]}")


def read_log(folder: Path, results: str) -> str:
    path = folder / f"{results}.log"
    return path.read_text("utf-8") if path.exists() else ""


def find_left(mark: str) -> list[str]:
    """Processes that have this test's mark in their environment."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                left.append(" ".join(process.cmdline()))
    return left


def read(folder: Path, results: str, table: str) -> pd.DataFrame:
    key = ["cell_id", "update"] if table == "curves" else ["cell_id"]
    frame = pd.read_parquet(folder / results / table).sort_values(key, ignore_index=True)
    return frame.drop(columns=TIMES, errors="ignore")


@pytest.mark.chaos
def test_thirty_kills_end_in_the_tables_of_an_undisturbed_sweep_and_leave_nothing(tmp_path, temporary):
    seed = os.environ.get(SEED) or str(random.randrange(10**6))
    print(f"{SEED}={seed}")
    dice, due = random.Random(seed), [kind for kind, times in PLAN.items() for _ in range(times)]
    run_to_the_end(tmp_path, "undisturbed", [], dice)
    sweeps: list[str] = []
    while due:
        assert len(sweeps) < len(PLAN), f"never killed: {due}"
        sweeps.append(f"sweep{len(sweeps)}")
        run_to_the_end(tmp_path, sweeps[-1], due, dice)
    for results in sweeps:
        assert "Traceback" not in read_log(tmp_path, results)
        for table in ("episodes_to_memorize", "agents", "curves"):
            found, expected = read(tmp_path, results, table), read(tmp_path, "undisturbed", table)
            pd.testing.assert_frame_equal(found, expected, check_exact=True, obj=f"{results}/{table}")
        assert not (tmp_path / results / "checkpoints").exists()
    # Ray's own agents notice within a minute that what they belong to is gone.
    deadline = time.monotonic() + 90
    while find_left(temporary.name) and time.monotonic() < deadline:
        time.sleep(1)
    assert find_left(temporary.name) == []
    # The cache that torch keeps for this user is not of one sweep.
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
