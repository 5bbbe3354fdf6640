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
    assert "memrl/py.typed" in held
    grids = {path.name for path in (ROOT / "sweeps" / "grids").glob("*.yaml")}
    assert {Path(name).name for name in held if name.startswith("memrl/grids/")} == grids
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


@pytest.mark.slow
def test_a_sweep_runs_from_the_wheel_where_there_is_no_checkout(wheel, tmp_path):
    run_uv("venv", "--quiet", "venv", cwd=tmp_path)
    binaries = tmp_path / "venv" / "bin"
    run_uv("pip", "install", "--quiet", "--python", str(binaries / "python"), str(wheel), cwd=tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = ["grid=smoke", "N=4", "seeds=2", "reward_type=binary", "env_type=single_step", "learning_rate=1e-2"]

    def run_memrl(*words: str) -> str:
        command = [str(binaries / "memrl"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = run_memrl("sweep", *words, "num_trials=1")
    assert "report: results/smoke/report.html" in output
    assert run_memrl("report", "grid=smoke").endswith("report: results/smoke/report.html\n")
    assert "memorized" in run_memrl("train", "N=4", "learning_rate=1e-2", "n_steps=100")
    assert (tmp_path / "results" / "smoke" / "sweep.json").exists()
