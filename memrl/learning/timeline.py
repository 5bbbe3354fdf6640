"""Who did what when: spans of time, as a Chrome trace."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """One piece of work.

    Attributes:
        name: what was done: sample or update.
        track: who did it.
        start: seconds on the machine's monotonic clock.
        end: likewise.
    """

    name: str
    track: str
    start: float
    end: float


@dataclass
class Timeline:
    """Collects spans; threads may add at once."""

    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def record(self, name: str, track: str) -> Iterator[None]:
        """Records the block as one span."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spans.append(Span(name, track, start, time.monotonic()))

    def to_chrome_trace(self) -> str:
        """The spans as JSON that chrome://tracing and Perfetto open; times in microseconds."""
        tracks = {track: i for i, track in enumerate(dict.fromkeys(span.track for span in self.spans))}
        process = os.getpid()
        names = [
            {"name": "thread_name", "ph": "M", "pid": process, "tid": i, "args": {"name": track}}
            for track, i in tracks.items()
        ]
        events = [
            {
                "name": span.name,
                "ph": "X",
                "ts": span.start * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "pid": process,
                "tid": tracks[span.track],
            }
            for span in self.spans
        ]
        return json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"})
