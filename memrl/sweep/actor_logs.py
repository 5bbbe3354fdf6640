"""What a sweep's actors print, on whichever node: kept in files beside the tables, out of the user's sight.

Ray lets each of its processes print into a file of its own, `worker-<worker>-<job>-<process>.out` or `.err`, in a
folder of the node's. At a sweep's end these are read, on a cluster by a task on every node.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_FILE = re.compile(r"worker-\w+-(?P<job>\w+)-(?P<process>\d+)\.(out|err)")
_MARK = re.compile(r"^:(?:job_id|(?P<who>(?:actor|task)_name)):(?P<name>.*)\n?", re.MULTILINE)
"""Ray's marks among the lines: whose lines follow."""

_MOST_BYTES = 4 * 1024**2
"""Of what a process has printed, the end is kept."""

_PATIENCE_S = 30.0
"""Seconds to wait for the nodes of a cluster."""


@contextmanager
def collect_logs(folder: Path, log_folder: Path | None) -> Iterator[None]:
    """Writes what the actors of this Ray job have printed by the end of the block, a file for each process.

    Args:
        folder: where the files lie; made when there is something to write.
        log_folder: where Ray keeps this machine's; None: asks the nodes of the cluster.
    """
    job = ray.get_runtime_context().get_job_id()
    try:
        yield
    finally:
        texts = read_logs(log_folder, job) if log_folder is not None else _ask_nodes(job)
        if texts:
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / f"{name}.log").open("a", errors="replace") as file:
                file.write(text)


def read_logs(log_folder: Path, job: str, place: str = "") -> dict[str, str]:
    """What the processes of a job printed on one node, by `<actor>-<place>-<process>`; silent ones are left out.

    Args:
        log_folder: of the node.
        job: Ray's id of the job.
        place: the node's name; empty: none in the name.
    """
    texts: dict[str, str] = {}
    names: dict[str, str] = {}
    for path in sorted(log_folder.glob(f"worker-*-{job}-*")):
        found = _FILE.fullmatch(path.name)
        if found is None:
            continue
        text = _read_end(path)
        process = found["process"]
        marked = [mark["name"] for mark in _MARK.finditer(text) if mark["who"]]
        names[process] = (marked or [names.get(process, "worker")])[0]
        texts[process] = texts.get(process, "") + _MARK.sub("", text)
    return {
        "-".join(filter(None, (names[process], place, process))): text
        for process, text in texts.items()
        if text.strip()
    }


def _read_end(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MOST_BYTES))
        return file.read().decode(errors="replace")


def _ask_nodes(job: str) -> Mapping[str, str]:
    """What was printed on all nodes that answer in time."""
    texts: dict[str, str] = {}
    # A cluster that is gone has nothing more to say, and what brought it down is told elsewhere.
    with suppress(Exception):
        asked = [
            ray.remote(_read_own_node)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(job, node["NodeManagerAddress"])
            for node in ray.nodes()
            if node["Alive"]
        ]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE_S)
        # Nodes of one machine share their folder: what a process printed is told by each.
        told: set[tuple[str, str]] = set()
        for answer in answered:
            with suppress(Exception):
                for name, text in ray.get(answer).items():
                    what = (name.rpartition("-")[2], text)
                    if what not in told:
                        told.add(what)
                        texts[name] = text
    return texts


def _read_own_node(job: str, place: str) -> dict[str, str]:
    """A task: what the job's processes printed on the node that it runs on; its own output lies among theirs."""
    return read_logs(Path(os.readlink("/proc/self/fd/1")).parent, job, place)
