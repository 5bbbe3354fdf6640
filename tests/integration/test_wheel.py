"""The wheel: holds what the package needs, and its core works in an environment with next to nothing."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

USE_CORE = """
import sys
import memrl
from memrl.config import TrainConfig
from memrl.task.reward import build_channel
from memrl.theory.capacity import channel_capacity
print(memrl.__file__)
print(channel_capacity(build_channel(TrainConfig(N=64))).uniform_guess_bits)
assert not {"torch", "ray", "vllm", "wandb", "transformers", "pandas"} & set(sys.modules)
"""


def run_uv(*arguments, cwd):
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "the tests run under uv"
    subprocess.run([uv, *arguments], cwd=cwd, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run_uv("build", "--wheel", "--out-dir", str(folder), str(ROOT), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    listed = subprocess.run(["git", "ls-files", "memrl"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    held = set(zipfile.ZipFile(wheel).namelist())
    assert set(listed.split()) - held == set()
    assert "memrl/assets/embedded/model.safetensors" in held
    assert "memrl/policy/kernels.c" in held
    assert not [name for name in held if name.startswith(("tests", "sweeps", "results", "benchmarks"))]


@pytest.mark.slow
def test_the_core_works_from_the_wheel_with_numpy_scipy_and_chz_alone(wheel, tmp_path):
    run_uv("venv", "--quiet", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run_uv("pip", "install", "--quiet", "--python", str(python), "--no-deps", str(wheel), cwd=tmp_path)
    run_uv("pip", "install", "--quiet", "--python", str(python), "numpy", "scipy", "jaxtyping", "chz", cwd=tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(python), "-c", USE_CORE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    where, bits = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert float(bits) == pytest.approx(0.11612, abs=1e-5)
