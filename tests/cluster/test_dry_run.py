"""What a sweep on a cluster would cost: asked of nodes that are up."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memrl.sweep.machine import count_local_gpus

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def ask(address: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "sweeps/launch.py", "grid=smoke", "dry_run=True", f"address={address}", *words]
    environment = os.environ | {"RAY_ADDRESS": "", "COLUMNS": "1000"}
    return subprocess.run(
        [*command, f"results={folder / 'smoke'}"],
        cwd=ROOT,
        env=environment,
        timeout=600,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_packs_are_tried_on_the_cluster_and_nothing_is_written(three_nodes: Any, tmp_path: Path) -> None:
    asked = ask(three_nodes.address, tmp_path, "device=cpu")
    assert asked.returncode == 0, asked.stdout
    assert "on 4 cpu trials at once" in asked.stdout
    assert "core-minutes; by " in asked.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(count_local_gpus() > 0, reason="this machine has a GPU")
def test_a_gpu_that_ray_claims_and_cuda_does_not_find_is_one_line(three_nodes: Any, tmp_path: Path) -> None:
    """The nodes say that they have a GPU each, so packs go to cuda; on a machine with a GPU the line has GPU-hours."""
    asked = ask(three_nodes.address, tmp_path)
    assert asked.returncode == 2, asked.stdout
    error = asked.stdout.strip().splitlines()[-1]
    assert error.startswith("error: cells must be such that they can train, got: RuntimeError: Found no NVIDIA driver")


def test_an_address_where_nobody_listens_is_one_line_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    asked = ask("127.0.0.2:9", tmp_path)
    assert asked.returncode == 1, asked.stdout
    (error,) = (line for line in asked.stdout.splitlines() if "error" in line)
    assert error == (
        "error: address must be that of a running Ray cluster (ray up, ray start --head), got 127.0.0.2:9:"
        " [Errno 111] Connection refused"
    )
    assert len(asked.stdout.splitlines()) <= 2, asked.stdout
    assert time.monotonic() - begun < 60
