"""The console of a command that works for long: nobody need read it to the end."""

import os
import sys
from typing import IO

from rich.console import Console

_WIDEST = 1000


class SteadyConsole(Console):
    """A console whose reader may go away (`| head -1`): from then on it is silent, and the work goes on.

    Where there is no terminal, lines and tables are as wide as they are.
    """

    def __init__(self, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width)
        if not self.is_terminal and width is None:
            self.width = _WIDEST

    def say(self, text: str) -> None:
        """Prints text that may be copied or searched for: unwrapped, and with its brackets as they are."""
        self.print(text, soft_wrap=True, markup=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Rich asks this where the reader is gone; its own answer ends the process."""
        # The descriptor itself: what is left in Python's buffer is written to it at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
