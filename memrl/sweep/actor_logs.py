"""What a sweep's actors print, on whichever node: kept in files, out of the user's sight."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LAST_LINES_S = 0.3
"""Ray reads its workers' output several times a second; what they printed last arrives within so many seconds."""


@contextmanager
def collect_logs(folder: Path) -> Iterator[None]:
    """Writes what the actors of this Ray job print while the block runs, one file for each of their processes.

    What Ray itself would print about them, such as that one died, goes to `raylet.log`.

    Args:
        folder: where the files lie; made when there is a first line to write.
    """
    # Ray's own way to get lines of workers on all nodes; its public face would print them.
    from ray._private import worker as ray_worker

    worker: Any = ray_worker.global_worker
    subscriber, job = worker.gcs_log_subscriber, worker.current_job_id.hex()
    subscriber.subscribe()
    ended = threading.Event()

    def listen() -> None:
        # Ray closes the subscriber when it shuts down, which ends a poll by an error.
        with suppress(Exception):
            while not ended.is_set():
                batch = subscriber.poll(timeout=_LAST_LINES_S)
                if batch is not None and batch["job"] == job:
                    append_lines(folder, batch)

    print_message = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = lambda batch, ignore_prefix: append_lines(folder, batch)
    thread = threading.Thread(target=listen, name="actor-logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.wait(_LAST_LINES_S)
        ended.set()
        thread.join(timeout=2 * _LAST_LINES_S)
        ray_worker.print_to_stdstream = print_message


def append_lines(folder: Path, batch: Mapping[str, Any]) -> None:
    """Appends a batch of lines, as Ray publishes them, to the file of the process that printed them.

    Args:
        folder: where the file lies.
        batch: actor_name or task_name and ip of the process, where it has them; its pid and lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = (batch.get("actor_name") or batch.get("task_name"), batch.get("ip"), batch["pid"])
    with (folder / f"{'-'.join(str(part) for part in parts if part)}.log").open("a") as file:
        file.writelines(f"{line}\n" for line in batch["lines"])
