"""What a Chrome trace of `memrl.learning.timeline` tells: its spans, and how much of two kinds ran at once."""

import json

from memrl.learning.timeline import Span


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
