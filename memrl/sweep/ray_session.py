"""Ray while a sweep runs: started on this machine, or a cluster that is joined."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from memrl.sweep.execution import Execution
from memrl.sweep.plan import count_local_cpus, count_local_gpus

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Trials' workers get an environment of their own from Tune, so workers that wait without one are of no use.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # `uv run` would make Ray pack the checkout and start every worker through uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Finished cells are known from our own tables, so Tune's record of itself is of no use while it runs.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
}
"""Settings of Ray and Tune, where the user has set nothing else."""

_OBJECT_STORE_BYTES = 512 * 1024**2
"""Shared memory for what trials report; Ray would take a third of the machine's memory."""


def set_environment(execution: Execution) -> None:
    """Sets what Ray and Tune read when they are imported or started."""
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    if execution.address is None:
        os.environ["OMP_NUM_THREADS"] = str(execution.num_threads)


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}


@dataclass(frozen=True)
class RaySession:
    """What Ray has to offer.

    Attributes:
        num_cpus: CPUs of the machine or the cluster.
        num_gpus: its GPUs.
        dashboard_url: of the cluster; None: it has none.
    """

    num_cpus: float
    num_gpus: float
    dashboard_url: str | None = None


@contextmanager
def start_ray(execution: Execution, num_engines: int) -> Iterator[RaySession]:
    """Starts Ray on this machine, or joins a cluster, while the block runs.

    Args:
        execution: where, and how many trials at once.
        num_engines: engines that will run beside the trials.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    session = _start_here(execution, num_engines) if execution.address is None else _join(execution.address)
    # Ray has put its own in their place.
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield session
    finally:
        ray.shutdown()


def _join(address: str) -> RaySession:
    cluster = ray.init(address, **_QUIET)
    available = ray.cluster_resources()
    return RaySession(available.get("CPU", 0.0), available.get("GPU", 0.0), cluster.dashboard_url)


def _start_here(execution: Execution, num_engines: int) -> RaySession:
    num_cpus, num_gpus = count_local_cpus(), count_local_gpus()
    trials = execution.num_trials or max(1, num_cpus // execution.num_threads)
    # Said in so many words: else Ray would join whatever cluster runs on this machine.
    ray.init(
        "local",
        # Engines have a CPU each; where they leave none to a trial, they share.
        num_cpus=max(num_cpus, trials * execution.num_threads) + num_engines,
        num_gpus=num_gpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        **_QUIET,
    )
    return RaySession(num_cpus, num_gpus)
