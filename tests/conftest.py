"""What every test runs under: one thread a process, no network, and examples that Hypothesis draws without a clock.

`pytest` alone runs the default tests in as many processes as there are cores, up to four. Where files or markers are
named there is one process: it starts sooner, and what kills processes or starts clusters is better alone.
"""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Where it is set, each process that a test starts would compile torch, Ray and transformers anew: ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Before memrl is imported: shapes that a function's annotation does not allow fail the test.
CHECKED = ["task", "theory", "learning", "analysis.survival", "analysis.resample"]
CHECKED += [f"rollout.{name}" for name in ("adapter_files", "backend", "in_process", "repeat", "replay")]
install_import_hook([f"memrl.{name}" for name in CHECKED], "shapes.check")

# A shell's background jobs ignore SIGINT, and so would all that the tests start: those of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported: threads of its own in each of Ray's processes would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Before Ray is imported: under `uv run` it would make an environment anew for each of its sessions.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

settings.register_profile("memrl", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("memrl")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    is_default = config.args_source is pytest.Config.ArgsSource.TESTPATHS and "-m" not in config.invocation_params.args
    return min(4, len(os.sched_getaffinity(0))) if is_default else 0


@pytest.fixture(autouse=True)
def _keep_denormal_numbers() -> Iterator[None]:
    """A command that ran in this process has set the processor to flush them; Hypothesis and plain numpy need them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
