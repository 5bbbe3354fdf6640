"""The launcher as a process of its own, as a terminal starts it, and what it leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0


def start(folder: Path, *words: str, grid: str = "smoke") -> subprocess.Popen[str]:
    """Starts the launcher as a terminal would: in a process group of its own, which Ctrl-C reaches as a whole."""
    command = [sys.executable, str(ROOT / "sweeps" / "launch.py"), f"grid={grid}", *words]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> str:
    """What the launcher said, once it has ended."""
    try:
        return process.communicate(timeout=deadline_s)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def read(folder: Path, results: str = "results/smoke") -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trained cells and the curves, as pandas reads them."""
    cells, curves = (pd.read_parquet(folder / results / name) for name in ("episodes_to_memorize", "curves"))
    return cells, curves
