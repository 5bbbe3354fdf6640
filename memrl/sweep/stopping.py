"""Ctrl-C and SIGTERM: the first one asks for a clean stop, the second one ends the work where it is."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody wants the work to stop.

    Attributes:
        signal: the first signal that came; None before one has.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal ended: 128 and the signal's number."""
        return 0 if self.signal is None else 128 + self.signal

    def take(self, number: int, frame: FrameType | None) -> None:
        """Takes note of a signal; the second one raises.

        Raises:
            KeyboardInterrupt: a signal had come before.
        """
        if self:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def catch_signals(request: StopRequest) -> Iterator[None]:
    """Lets SIGINT and SIGTERM ask for a stop while the block runs."""
    before = {number: signal.signal(number, request.take) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
