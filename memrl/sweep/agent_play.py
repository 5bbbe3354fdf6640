"""The baseline agents of a sweep, played in this process while its trials keep it waiting."""

import threading
from collections.abc import Sequence
from typing import Any

from memrl.config import TrainConfig
from memrl.tables.rows import agent_row
from memrl.theory.agents import play_agents


class AgentPlay(threading.Thread):
    """Lets the agents play the cells' channels and secrets, beside the trials.

    A daemon: an interrupted sweep does not wait for it.

    Args:
        cells: all cells of the sweep.

    Attributes:
        done: set when the play has ended, one way or another.
    """

    def __init__(self, cells: Sequence[TrainConfig]) -> None:
        super().__init__(name="agents", daemon=True)
        self.done = threading.Event()
        self._cells = cells
        self._rows: list[dict[str, Any]] = []
        self._error: Exception | None = None

    def run(self) -> None:
        """Plays, in the thread."""
        try:
            self._rows = [agent_row(run) for run in play_agents(self._cells)]
        except Exception as error:  # raised where the rows are asked for
            self._error = error
        finally:
            self.done.set()

    def rows(self) -> list[dict[str, Any]]:
        """Waits for the agents' rows of episodes_to_memorize.

        Raises:
            Exception: whatever ended the play.
        """
        self.done.wait()
        if self._error is not None:
            raise self._error
        return self._rows
