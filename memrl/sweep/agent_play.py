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

from memrl.config import TrainConfig
from memrl.tables.rows import agent_id, agent_row
from memrl.tables.schema import Row
from memrl.theory.agents import play_agents, tabular_fields, tabular_rates

_SPAWN = multiprocessing.get_context("spawn")


class AgentsFailedError(Exception):
    """The agents can't play to the end; one line."""


class AgentPlay:
    """Lets the agents play the cells' channels and secrets. Who is interrupted need not wait for it.

    Args:
        cells: whose channels and secrets they play.
    """

    def __init__(self, cells: Sequence[TrainConfig]) -> None:
        self._cells = cells
        self._receiver: Connection | None = None
        self._process: SpawnProcess | None = None

    def start(self) -> None:
        """Starts the play, once."""
        if self._receiver is not None:
            return
        self._receiver, sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=_play, args=(self._cells, sender), name="agents", daemon=True)
        self._process.start()
        sender.close()

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the play, but no longer than this; returns whether it has ended."""
        assert self._receiver is not None, "started before"
        return self._receiver.poll(seconds)

    def rows(self) -> list[Row]:
        """Waits for the agents' rows.

        Raises:
            AgentsFailedError: something ended the play.
        """
        assert self._receiver is not None, "started before"
        assert self._process is not None, "started before"
        try:
            rows, error = self._receiver.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise AgentsFailedError(f"the process in which the agents play ended with exit code {code}") from None
        self._process.join()
        if error:
            raise AgentsFailedError(error)
        return rows

    def stop(self) -> None:
        """Ends the play where it is."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()


def find_unplayed(cells: Iterable[TrainConfig], played: set[str]) -> list[TrainConfig]:
    """The cells that the agents have left no rows for.

    All rows of a play are written at once, and tabular_pg plays every channel, so that its rows tell.

    Args:
        cells: of the sweep.
        played: the cell_id of every agent's row.
    """

    def first_id(cell: TrainConfig) -> str:
        return agent_id("tabular_pg", cell, tabular_fields(cell, tabular_rates(cell)[0]))

    return [cell for cell in cells if first_id(cell) not in played]


def _play(cells: Sequence[TrainConfig], sender: Connection) -> None:
    """Plays, in the process."""
    # The launcher decides what a Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        sender.send(([agent_row(run) for run in play_agents(cells)], ""))
    except Exception as error:
        sender.send(([], f"{type(error).__name__}: {' '.join(str(error).split())}"))


def _end_with_launcher() -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None, "runs in the agents' process"
    wait([launcher.sentinel])
    os._exit(1)
