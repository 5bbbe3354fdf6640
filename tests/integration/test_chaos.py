"""Thirty processes of a sweep killed at random, whichever they are: it ends in the tables of an undisturbed one."""

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

WORDS = ["grid=smoke", "N=8", "seeds=1", "learning_rate=1e-4", "n_steps=2500", "num_trials=2", "pack_size=4"]
MARK = "MEMRL_CHAOS"
TIMES = ["seconds", "created"]

PLAN = {
    "trial": 5,
    "agents": 3,
    "log_monitor": 2,
    "launcher SIGINT": 4,
    "launcher SIGTERM": 4,
    "launcher SIGKILL": 4,
    "raylet": 3,
    "gcs_server": 3,
    "ray agent": 2,
}
"""How many processes of each kind are killed, 30 in all."""

GOES_ON = {"trial": 2, "agents": 1, "log_monitor": 2}
"""Kinds without which a launch goes on, and how many it can lose: a third death of a trial splits its pack."""

SIGNALS = {"launcher SIGINT": signal.SIGINT, "launcher SIGTERM": signal.SIGTERM}

TITLES = {
    "trial": ("ray::PackTrial", "ray::ResourceTrainable"),
    "agents": ("multiprocessing.spawn",),
    "log_monitor": ("log_monitor.py",),
    "ray agent": ("runtime_env/agent/main.py", "dashboard/agent.py"),
}


@pytest.fixture
def temporary(monkeypatch) -> Iterator[Path]:
    """A temporary folder of this test alone, whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv(MARK, folder.name)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def launch(folder: Path, results: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "sweeps" / "launch.py"), *WORDS, f"results={results}"]
    with (folder / f"{results}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def find(launcher: subprocess.Popen[bytes], kind: str) -> list[psutil.Process]:
    """The processes of a kind that a launch has running."""
    with suppress(psutil.Error):
        process = psutil.Process(launcher.pid)
        if kind.startswith("launcher"):
            return [process]
        return [child for child in process.children(recursive=True) if is_of(child, kind)]
    return []


def is_of(process: psutil.Process, kind: str) -> bool:
    with suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return process.name() == kind or any(words in title for words in TITLES.get(kind, ()))
    return False


def disturb(launcher: subprocess.Popen[bytes], due: list[str], dice: random.Random) -> None:
    """Kills processes of a launch, each a random while after it has come, until the launch has ended."""
    lost = Counter[str]()
    waits_for = dice.choice(("raylet", "trial", "agents"))
    while launcher.poll() is None:
        kinds = [kind for kind in due if lost[kind] < GOES_ON.get(kind, 1) and find(launcher, kind)]
        # Of what ends a launch, at some launches while it starts, at others while it trains, or while agents play.
        if not lost and not find(launcher, waits_for):
            kinds = [kind for kind in kinds if kind in GOES_ON]
        if not kinds:
            time.sleep(0.1)
            continue
        kind = dice.choice(sorted(kinds, key=lambda kind: kind not in GOES_ON)[:4])
        time.sleep(dice.choice((0.0, 0.5, 1.0, 2.0)))
        for process in find(launcher, kind)[:1]:
            with suppress(psutil.Error):
                process.send_signal(SIGNALS.get(kind, signal.SIGKILL))
                lost[kind] += 1
                due.remove(kind)
        if kind not in GOES_ON:
            launcher.wait(120)


def finish(folder: Path, results: str) -> None:
    """Launches until all is there: one launch, or two where an agent was killed in the last one."""
    launcher = launch(folder, results)
    try:
        assert launcher.wait(400) == 0, (folder / f"{results}.log").read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)


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
    return pd.read_parquet(folder / results / table).sort_values(key, ignore_index=True)


@pytest.mark.chaos
def test_thirty_kills_end_in_the_tables_of_an_undisturbed_sweep_and_leave_nothing(tmp_path, temporary):
    finish(tmp_path, "undisturbed")
    dice = random.Random(14)
    due = [kind for kind, times in PLAN.items() for _ in range(times)]
    sweeps: list[str] = []
    while due:
        sweeps.append(f"sweep{len(sweeps)}")
        assert len(sweeps) < len(PLAN), f"never killed: {due}"
        ended = None
        while due and ended != 0:
            launcher = launch(tmp_path, sweeps[-1])
            try:
                disturb(launcher, due, dice)
                ended = launcher.wait(400)
            finally:
                if launcher.poll() is None:
                    os.killpg(launcher.pid, signal.SIGKILL)
    for results in sweeps:
        finish(tmp_path, results)
        assert "Traceback" not in (tmp_path / f"{results}.log").read_text()
        for table in ("episodes_to_memorize", "agents", "curves"):
            found, expected = read(tmp_path, results, table), read(tmp_path, "undisturbed", table)
            times = [name for name in TIMES if name in found]
            pd.testing.assert_frame_equal(found.drop(columns=times), expected.drop(columns=times), check_exact=True)
        assert not (tmp_path / results / "checkpoints").exists()
    # Ray's own agents notice within a minute that what they belong to is gone.
    deadline = time.monotonic() + 90
    while find_left(temporary.name) and time.monotonic() < deadline:
        time.sleep(1)
    assert find_left(temporary.name) == []
    assert [path.name for path in temporary.iterdir()] == []
