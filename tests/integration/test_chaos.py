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

KILLS = 30
WORDS = ["grid=smoke", "N=8", "seeds=1", "learning_rate=1e-4", "n_steps=2500", "num_trials=2", "pack_size=4"]
MARK = "MEMRL_CHAOS"
TIMES = ["seconds", "created"]

ENDS_LAUNCH = {
    "launcher SIGINT": signal.SIGINT,
    "launcher SIGTERM": signal.SIGTERM,
    "launcher SIGKILL": signal.SIGKILL,
    "raylet": signal.SIGKILL,
    "gcs_server": signal.SIGKILL,
    "ray agent": signal.SIGKILL,
}
GOES_ON = {"trial": signal.SIGKILL, "agents": signal.SIGKILL, "log_monitor": signal.SIGKILL}
MOST_A_LAUNCH = {"trial": 2, "agents": 1, "log_monitor": 1}
"""A trial that dies a third time has its pack split, after which numbers agree up to rounding alone."""

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


def disturb(launcher: subprocess.Popen[bytes], dice: random.Random, killed: Counter[str]) -> None:
    """Kills processes of a launch at random moments, until it has ended."""
    spared = dict(MOST_A_LAUNCH)
    while launcher.poll() is None and killed.total() < KILLS:
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(dice.choice((0.3, 1.0, 2.0, 4.0, 6.0)))
            return
        # The rarest kind of those that run now, so that all of them have their turn.
        kinds = [kind for kind in (*GOES_ON, *ENDS_LAUNCH) if spared.get(kind, 1) and find(launcher, kind)]
        dice.shuffle(kinds)
        if not kinds:
            continue
        kind = min(kinds, key=lambda kind: killed[kind])
        for process in find(launcher, kind)[:1]:
            with suppress(psutil.Error):
                process.send_signal((ENDS_LAUNCH | GOES_ON)[kind])
                killed[kind] += 1
        if kind in ENDS_LAUNCH:
            launcher.wait(120)
        elif kind in spared:
            spared[kind] -= 1


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
    key = ["cell_id", "update"] if table == "curves" else ["cell_id", "agent"]
    return pd.read_parquet(folder / results / table).sort_values(key, ignore_index=True)


@pytest.mark.slow
def test_thirty_kills_end_in_the_tables_of_an_undisturbed_sweep_and_leave_nothing(tmp_path, temporary):
    finish(tmp_path, "undisturbed")
    dice, killed, rounds = random.Random(14), Counter[str](), 0
    while killed.total() < KILLS:
        rounds += 1
        ended = None
        # Until it has come to its end undisturbed, or has been disturbed enough.
        while ended != 0 and killed.total() < KILLS:
            launcher = launch(tmp_path, f"round{rounds}")
            try:
                disturb(launcher, dice, killed)
                ended = launcher.poll()
                if ended is None:
                    ended = launcher.wait(400)
            finally:
                if launcher.poll() is None:
                    os.killpg(launcher.pid, signal.SIGKILL)
                    launcher.wait()
    print(dict(killed), f"in {rounds} sweeps")
    assert len(killed) == len(ENDS_LAUNCH | GOES_ON), killed
    for results in (f"round{number + 1}" for number in range(rounds)):
        finish(tmp_path, results)
        assert "Traceback" not in (tmp_path / f"{results}.log").read_text()
        for table in ("episodes_to_memorize", "curves"):
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
