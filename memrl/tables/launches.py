"""sweep.json, beside the tables: which commands made them, when, for how long, on what machine, with which versions."""

import json
import os
import platform
import time
from datetime import UTC, datetime

from memrl.tables.parts import SCHEMA_VERSION
from memrl.tables.provenance import describe_processor, describe_versions, find_revision
from memrl.tables.schema import Row
from memrl.tables.store import TableStore

FILE = "sweep.json"


class LaunchNote:
    """The note of one launch, which is there from its begin on and complete from its end on.

    Args:
        store: whose tables the launch writes.
        grid: the sweep's name.
        command: the command that was given.
        num_cells: cells that it is to train.
    """

    def __init__(self, store: TableStore, grid: str, command: str, num_cells: int) -> None:
        self._store, self._grid, self._start = store, grid, time.monotonic()
        self._earlier = read_launches(store)
        self._launch = {
            "command": command,
            "cells": num_cells,
            "begun": _now(),
            "ended": None,
            "seconds": None,
            "machine": describe_machine(),
            "versions": json.loads(describe_versions()),
            "revision": find_revision(),
        }
        self._write()

    def end(self) -> None:
        """Notes that the launch has ended.

        Raises:
            WriteError: it can't be written.
        """
        self._launch |= {"ended": _now(), "seconds": round(time.monotonic() - self._start, 1)}
        self._write()

    def _write(self) -> None:
        found = {"grid": self._grid, "schema_version": SCHEMA_VERSION, "launches": [*self._earlier, self._launch]}
        self._store.write_text(FILE, json.dumps(found, indent=1) + "\n")


def read_launches(store: TableStore) -> list[Row]:
    """The launches that made the tables, oldest first; empty where nobody noted any, or the note can't be read."""
    try:
        launches = json.loads(store.read_text(FILE) or "{}")["launches"]
    except (ValueError, KeyError, TypeError):
        return []
    return [launch for launch in launches if isinstance(launch, dict)] if isinstance(launches, list) else []


def describe_machine() -> Row:
    """The machine that the launcher runs on; trials on a cluster may run on others."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": describe_processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
