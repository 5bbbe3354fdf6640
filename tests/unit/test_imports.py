"""What may import what, and what must work without the heavy packages."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    [*(ROOT / "memrl").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
)
COMMANDS = sorted(
    {"memrl.rl_train", "memrl.sft_train", "memrl.preview_env", "memrl.warmup_train", "memrl.report", "memrl.launch"}
)

IMPORT_WITH_ONLY = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

allowed = set({allowed!r})

class Forbid:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(top)
        if spec is not None and "site-packages" in (spec.origin or ""):
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)

sys.meta_path.insert(0, Forbid())
names = {names!r}
while names:
    module = importlib.import_module(names.pop())
    if {walk!r}:
        names += [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []), module.__name__ + ".")]
{then}
"""


def import_with_only(allowed, names, then="", walk=True):
    """Imports modules, and all below them, in a process where no other installed package can be found."""
    code = IMPORT_WITH_ONLY.format(allowed=sorted({"memrl", *allowed}), names=names, then=then, walk=walk)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_package_itself_needs_nothing():
    done = import_with_only([], ["memrl"], walk=False)
    assert done.returncode == 0, done.stderr


def test_the_pure_core_works_without_the_heavy_packages():
    """numpy, scipy, jaxtyping and chz do for a cell, its task and its theory: no torch, ray, vllm, wandb or pandas."""
    use = """
from memrl.config import TrainConfig
from memrl.task.reward import build_channel
from memrl.task.secret import draw_secret
channel = build_channel(TrainConfig(reward_type="distance", N=16))
print(channel.rewards(draw_secret(16, 3), draw_secret(16, 3)).tolist())
"""
    core = ["memrl.config", "memrl.task", "memrl.theory"]
    done = import_with_only(["numpy", "scipy", "chz", "jaxtyping", "wadler_lindig", "typing_extensions"], core, use)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[1.0]]\n"


def test_a_forbidden_package_is_really_out_of_reach():
    done = import_with_only(["numpy"], ["memrl"], "import torch", walk=False)
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_its_arguments_without_the_heavy_packages(command):
    """Else --help and a wrong argument would wait for torch."""
    run = f"import runpy; sys.argv = [{command!r}, '--help']; runpy.run_module({command!r}, run_name='__main__')"
    shapes = ["jaxtyping", "wadler_lindig"]
    light = ["numpy", "scipy", "chz", "typing_extensions", "rich", "pygments", "markdown_it", "mdurl", "yaml", *shapes]
    # The launcher asks its tables what has finished already.
    own = ["pyarrow", "fsspec", "safetensors"] if command == "memrl.launch" else []
    done = import_with_only([*light, *own], ["memrl"], run, walk=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@cache
def find_imports(path):
    """The import statements of a file, wherever they stand in it."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def list_imports(path):
    """Every module and `module.name` that a file imports."""
    for node in find_imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("package", "home"), [("vllm", "memrl/rollout/vllm_actor.py"), ("ray.tune", "memrl/sweep/trial.py")]
)
def test_one_module_alone_speaks_to(package, home):
    importers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name == package or name.startswith(f"{package}.") for name in list_imports(path))
    }
    assert importers == {home}


def test_imports_are_absolute():
    relative = [str(path) for path in SOURCES for node in find_imports(path) if getattr(node, "level", 0)]
    assert relative == []


def test_imports_point_one_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None, no_logo=True) == EXIT_STATUS_SUCCESS


def test_imports_stand_at_the_top_of_a_file_but_where_a_command_waits_for_its_words():
    deferred = [
        (path.name, function.name, node.lineno)
        for path in [*(ROOT / "memrl").rglob("*.py"), *(ROOT / "sweeps").glob("*.py")]
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(deferred) <= 15, deferred
