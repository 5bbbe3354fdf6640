"""One live line that tells how far a sweep, or one cell, is."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.live import Live
from rich.text import Text

from memrl.sweep.console import SteadyConsole
from memrl.sweep.recorder import Recorder

_PLAIN_SECONDS = 10.0
"""Without a terminal, a line is printed this often."""


class ProgressLine:
    """Shows a text on one line while its block runs.

    On a terminal the line is redrawn in place; elsewhere (a log, a job's output) it is printed every ten seconds.

    Args:
        describe: the text, asked for whenever it is shown.
        console: where the line goes.
    """

    def __init__(self, describe: Callable[[], str], console: SteadyConsole) -> None:
        self._describe, self._console = describe, console
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)
        self._last_print = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the line away."""
        if self._console.is_terminal:
            self._live.stop()

    def tick(self) -> None:
        """Prints the line if it is time to and there is no terminal to draw on."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_print >= _PLAIN_SECONDS:
            self._console.say(self._describe())
            self._last_print = now

    def _render(self) -> Text:
        return Text(self._describe(), no_wrap=True, overflow="ellipsis")


def describe_sweep(name: str, recorder: Recorder, phase: str = "", waited: float | None = None) -> str:
    """The live line's text: cells done, memorized and failed, episodes per second, and time left.

    Args:
        name: the sweep's name.
        recorder: what has come.
        phase: what is being waited for, if anything.
        waited: for so many seconds, where that is told.
    """
    statuses, clock = recorder.statuses, "" if waited is None else format_seconds(waited)
    parts = [f"{recorder.num_done:,}/{recorder.num_cells:,} cells", f"{statuses['memorized']:,} memorized"]
    parts += [f"{statuses[name]:,} {name}" for name in ("stopped", "failed") if statuses[name]]
    if not recorder.has_started:
        return f"{name}  {parts[0]}  {phase} ...{clock and f' {clock}'}"
    # While something is waited for, that is told instead: 80 columns hold it whole.
    rate = 0.0 if phase else recorder.episodes_per_s()
    parts.append(f"{rate:,.0f} episodes/s" if rate else "")
    left = recorder.seconds_left() if recorder.num_done < recorder.num_cells else None
    parts.append("" if left is None else f"{format_seconds(left)} left")
    told = f"  ({', '.join(filter(None, (phase, clock)))})" if phase else ""
    return f"{name}  {'  '.join(filter(None, parts))}{told}"


def format_seconds(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes.

    >>> format_seconds(75), format_seconds(7500)
    ('1:15 min', '2:05 h')
    """
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
