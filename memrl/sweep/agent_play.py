"""The baseline agents of a sweep, played in a process of their own while its trials keep the launcher waiting.

Of their own, since a reward function of the user's may end the process that calls it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from memrl.channels import REWARDS, label_channel
from memrl.config import TrainConfig
from memrl.errors import tell_error
from memrl.tables.rows import agent_id, agent_row
from memrl.tables.schema import Row
from memrl.theory.agents import exact_fields, is_played, play_agents, tabular_fields, tabular_rates

_SPAWN = multiprocessing.get_context("spawn")


_TRIES = 2
"""A part of the play that ends its process is tried this often."""


class AgentPlay:
    """Lets the agents play the cells' channels and secrets. Who is interrupted need not wait for it.

    Each reward function of the user's own is played apart, so that what it breaks is its own.

    Args:
        cells: whose channels and secrets they play.

    Attributes:
        rows: of the agents' table, as far as the play has come.
        problems: what could not be played, one line each.
    """

    def __init__(self, cells: Sequence[TrainConfig]) -> None:
        parts: dict[str, list[TrainConfig]] = {}
        for cell in cells:
            parts.setdefault("" if cell.reward_type in REWARDS else cell.reward_type, []).append(cell)
        self._left = [parts[name] for name in sorted(parts)]
        self._tries = 0
        self._receiver: Connection | None = None
        self._process: SpawnProcess | None = None
        self.rows: list[Row] = []
        self.problems: list[str] = []

    def start(self) -> None:
        """Starts the play, once."""
        if self._receiver is None and self._left:
            self._start_process()

    def _start_process(self) -> None:
        self._tries += 1
        self._receiver, sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=_play, args=(self._left, sender), name="agents", daemon=True)
        self._process.start()
        sender.close()

    def wait(self, seconds: float) -> bool:
        """Takes what has been played, waiting no longer than this for it; returns whether the play has ended."""
        if self._receiver is not None and self._left and self._receiver.poll(seconds):
            try:
                rows, problem = self._receiver.recv()
            except (EOFError, OSError):
                self._meet_end()
            else:
                self._end_part(rows, problem)
        return not self._left

    def _meet_end(self) -> None:
        """The process has ended before the play: it starts again, without what it played if that ended it twice."""
        assert self._process is not None, "started before"
        self._process.join()
        if self._tries == _TRIES:
            self._end_part([], f"the process in which they play ended with exit code {self._process.exitcode}")
            self._tries = 0
        if self._left:
            self._start_process()

    def _end_part(self, rows: list[Row], problem: str) -> None:
        part = self._left.pop(0)
        self._tries = 1
        self.rows += rows
        if problem:
            self.problems.append(f"{label_channel(part[0].identity())}: {problem}")

    def stop(self) -> None:
        """Ends the play where it is."""
        self._left = []
        if self._process is not None and self._process.is_alive():
            self._process.kill()


def find_unplayed(cells: Iterable[TrainConfig], played: set[str]) -> list[TrainConfig]:
    """The cells that the agents are to play for and have left no rows for.

    All rows of a play are written at once, and tabular_pg plays every channel but those of distilled cells, so that
    the rows of these agents tell.

    Args:
        cells: of the sweep.
        played: the cell_id of every agent's row.
    """
    return [cell for cell in cells if is_played(cell) and played.isdisjoint(_telling_ids(cell))]


def _telling_ids(cell: TrainConfig) -> list[str]:
    if cell.algorithm == "distill":
        return [agent_id(agent, cell, exact_fields(cell)) for agent in ("optimal", "greedy", "weighing")]
    return [agent_id("tabular_pg", cell, tabular_fields(cell, tabular_rates(cell)[0]))]


def _play(parts: Sequence[Sequence[TrainConfig]], sender: Connection) -> None:
    """Plays, in the process."""
    # The launcher decides what a Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    for cells in parts:
        try:
            told = [agent_row(run) for run in play_agents(cells)], ""
        except Exception as error:
            told = [], f"{type(error).__name__}: {tell_error(error)}"
        sender.send(told)


def _end_with_launcher() -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None, "runs in the agents' process"
    wait([launcher.sentinel])
    os._exit(1)
