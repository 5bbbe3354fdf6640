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


def read_chrome_trace(text: str) -> list[Span]:
    """The spans of what `Timeline.to_chrome_trace` wrote; times in seconds."""
    events = json.loads(text)["traceEvents"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    return [
        Span(event["name"], tracks[event["tid"]], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in events
        if event["ph"] == "X"
    ]


def measure_overlap(spans: list[Span], first: str, second: str) -> float:
    """The share of the time from the first start to the last end during which spans of both names were under way.

    >>> measure_overlap([Span("sample", "a", 0.0, 2.0), Span("update", "b", 1.0, 4.0)], "sample", "update")
    0.25
    """
    edges = sorted(
        (time_, sign, span.name)
        for span in spans
        if span.name in (first, second)
        for time_, sign in ((span.start, 1), (span.end, -1))
    )
    if not edges:
        return 0.0
    under_way = {first: 0, second: 0}
    both, before = 0.0, edges[0][0]
    for now, sign, name in edges:
        if all(under_way.values()):
            both += now - before
        under_way[name] += sign
        before = now
    return both / max(edges[-1][0] - edges[0][0], 1e-12)
