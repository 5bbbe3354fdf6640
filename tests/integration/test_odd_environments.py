"""Whole sweeps where something around them is odd: each works as elsewhere, or says why not in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from launching import ROOT

WORDS = ["grid=smoke", "N=4", "seeds=1", "reward_type=binary", "env_type=single_step", "learning_rate=1e-2"]
COMMAND = [sys.executable, str(ROOT / "sweeps" / "launch.py"), *WORDS]

ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "C locale, no home": {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "HOME": None,
        "XDG_CACHE_HOME": None,
    },
    "a home that can't be written": {"HOME": "/proc/nohome", "XDG_CACHE_HOME": None},
    "what is meant for other programs": {
        "GIT_DIR": "/nowhere",
        "GIT_WORK_TREE": "/nowhere",
        "CUDA_VISIBLE_DEVICES": "0",
        "RAY_ADDRESS": "127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "WANDB_PROJECT": "other",
        "WANDB_RUN_ID": "abc",
        "WANDB_MODE": "disabled",
    },
}


def launch(folder: Path, *words: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs the sweep in a folder, with these variables set, or unset where they are None."""
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    return subprocess.run([*COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def check_that_it_worked(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (status,) = pd.read_parquet(folder / "results" / "smoke" / "episodes_to_memorize")["status"]
    assert status == "memorized"


@pytest.mark.chaos
@pytest.mark.parametrize("odd", ENVIRONMENTS)
def test_a_sweep_runs_as_elsewhere(tmp_path, odd):
    check_that_it_worked(tmp_path, launch(tmp_path, **ENVIRONMENTS[odd]))


@pytest.mark.chaos
def test_a_temporary_folder_of_a_long_name_beyond_ascii_will_do(tmp_path):
    temporary = tmp_path / ("ü" * 60)
    temporary.mkdir()
    check_that_it_worked(tmp_path, launch(tmp_path, TMPDIR=str(temporary)))
    # The cache that torch keeps for this user is not of one sweep.
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []


@pytest.mark.chaos
def test_a_model_may_lie_at_a_relative_path_and_is_one_under_each_of_its_names(tmp_path):
    shutil.copytree(ROOT / "memrl" / "assets" / "embedded", tmp_path / "model")
    for name in ("model", "./model"):
        done = launch(tmp_path, f"model={name}")
        check_that_it_worked(tmp_path, done)
    assert "finished already" in done.stdout


@pytest.mark.chaos
def test_kernels_need_no_cache_that_may_hold_programs(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", cache], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root mounts a disk")
    try:
        check_that_it_worked(tmp_path, launch(tmp_path, XDG_CACHE_HOME=str(cache), HOME=str(cache)))
    finally:
        subprocess.run(["umount", cache], check=True)


@pytest.mark.chaos
def test_nobody_need_read_what_a_sweep_prints(tmp_path):
    command = " ".join(f"'{word}'" for word in COMMAND)
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -1"], cwd=tmp_path, capture_output=True)
    done = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    check_that_it_worked(tmp_path, done)


@pytest.mark.chaos
@pytest.mark.parametrize("results", ["/proc/results", "file/results"])
def test_results_that_can_not_be_written_are_one_line(tmp_path, results):
    (tmp_path / "file").touch()
    done = launch(tmp_path, f"results={results}")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: results must be a writable address")
