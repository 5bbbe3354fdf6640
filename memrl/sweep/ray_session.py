"""Ray while a sweep runs: started on this machine, or a cluster that is joined."""

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from memrl.errors import StartError
from memrl.sweep.execution import Execution
from memrl.sweep.machine import count_local_cpus, count_local_gpus
from memrl.sweep.scratch import scratch_folder
from memrl.sweep.watchdog import end_processes

_OBJECT_STORE_BYTES = 512 * 1024**2
"""Shared memory for what trials tell; Ray would take a third of the machine's memory."""

_SOCKET_BYTES = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""The longest path of Ray's folder: systems allow 107 bytes for that of a socket."""

_CONNECT_S = 10.0
"""A cluster's head that does not take a connection in this time is not there."""

_init_quietly = partial(ray.init, log_to_driver=False, logging_level=logging.CRITICAL)


@dataclass(frozen=True)
class RaySession:
    """What Ray has to offer.

    Attributes:
        num_cpus: CPUs of the machine or the cluster.
        num_gpus: its GPUs.
        log_folder: where Ray keeps what its processes print; None: each node of the cluster has its own.
        dashboard_url: of the cluster; None: it has none.
    """

    num_cpus: float
    num_gpus: float
    log_folder: Path | None = None
    dashboard_url: str | None = None


@contextmanager
def start_ray(execution: Execution, num_engines: int) -> Iterator[RaySession]:
    """Starts Ray on this machine, or joins a cluster, while the block runs.

    Args:
        execution: where, and how many trials at once.
        num_engines: engines that will run beside the trials.

    Raises:
        StartError: Ray can't be started or joined.
    """
    silence_ray()
    with _join(execution.address) if execution.address is not None else _start_here(execution, num_engines) as session:
        yield session


def silence_ray() -> None:
    """Keeps what Ray has to say of processes that died off the user's screen: what it means for a sweep is told there.

    `log_to_driver` is about what processes print, and Ray has no other setting for its own words.
    """
    ray_worker.print_to_stdstream = lambda *args, **kwargs: None


@contextmanager
def _join(address: str) -> Iterator[RaySession]:
    with _keep_signals():
        try:
            _check_answers(address)
            cluster = _init_quietly(address)
        except Exception as error:
            rule = "address must be that of a running Ray cluster (ray up, ray start --head)"
            raise StartError(f"{rule}, got {address}: {_last_line(error)}") from error
    try:
        available = ray.cluster_resources()
        yield RaySession(available.get("CPU", 0.0), available.get("GPU", 0.0), None, cluster.dashboard_url)
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens at an address: Ray would find out in minutes, and print what it tried."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


@contextmanager
def _start_here(execution: Execution, num_engines: int) -> Iterator[RaySession]:
    num_cpus, num_gpus = count_local_cpus(), count_local_gpus()
    trials = execution.num_trials or max(1, num_cpus // execution.num_threads)
    options: dict[str, Any] = {
        # Engines have a CPU each; where they leave none to a trial, they share.
        "num_cpus": max(num_cpus, trials * execution.num_threads) + num_engines,
        "num_gpus": num_gpus,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    with scratch_folder(_SOCKET_BYTES) as folder:
        _init_twice(options | {"_temp_dir": str(folder)}, folder)
        try:
            yield RaySession(num_cpus, num_gpus, folder / "session_latest" / "logs")
        finally:
            ray.shutdown()


def _init_twice(options: dict[str, Any], folder: Path) -> None:
    """Starts Ray; once more where it fails, since on a busy machine its half a minute may be over too soon."""
    with _keep_signals():
        try:
            # "local" in so many words: else Ray would join whatever cluster runs on this machine.
            _init_quietly("local", **options)
        except Exception:
            ray.shutdown()
            # Ray leaves those of a start that failed until this process ends, and they would slow the next one down.
            end_processes(folder)
            try:
                _init_quietly("local", **options)
            except Exception as error:
                ray.shutdown()
                raise StartError(f"Ray can't start on this machine, twice: {_last_line(error)}") from error


@contextmanager
def _keep_signals() -> Iterator[None]:
    """Keeps the handlers of signals, which Ray replaces by its own, and puts back those that it did replace."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replace_handler, ray_utils.set_sigterm_handler = ray_utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = replace_handler
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
