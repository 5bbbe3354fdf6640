"""Where the time of a whole sweep goes: training, loading, and Ray with its launcher."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import chz
from measure import Report, Row, describe_machine
from spans import read_chrome_trace

from memrl import cli
from memrl.fields import field

USAGE = """\
Runs a grid as `sweeps/launch.py` does, and splits the time of its trials' places by what they were used for.

  python benchmarks/sweep_time.py
  python benchmarks/sweep_time.py grid=smoke
"""

ROOT = Path(__file__).resolve().parents[1]

_PROCESS = re.compile(r'"pid": (\d+)')

KINDS = ("training", "starting packs", "loading torch, transformers and the model", "Ray, the launcher and waiting")


@chz.chz
class SweepTime:
    """What is measured."""

    grid: str = field(default="bitrate", doc="name of a file in sweeps/grids")
    num_trials: int = field(default=2, doc="trials at once, a thread each")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")


def main() -> None:
    """Runs the sweep and prints the tables."""
    (sweep,) = cli.parse_arguments(sys.argv[1:], SweepTime, usage=USAGE)
    report = Report("sweep_time", chz.asdict(sweep), describe_machine(1), sweep.output)
    with tempfile.TemporaryDirectory(prefix="memrl-sweep-") as folder:
        began, wall = run_grid(sweep, folder)
        traces = [path.read_text("utf-8") for path in (Path(folder) / "timeline").iterdir()]
        # The report is written when all tables are.
        tables = max(path.stat().st_mtime for path in Path(folder).rglob("*.parquet"))
    swept = tables - began
    first = min(read_spans(traces), key=lambda span: (span[1] != "round", span[2]))
    rows = [
        {"what": "the command", "s": wall},
        {"what": "its sweep, until all tables are written", "s": swept},
        {"what": "its first update has begun", "s": first[2] - began},
    ]
    report.add("wall time", rows, "from the start of the command, Python's own included")
    shares = split_time(read_spans(traces), swept * sweep.num_trials)
    rows = [{"what": kind, "s of a core": s, "%": 100 * s / (swept * sweep.num_trials)} for kind, s in shares.items()]
    note = f"of {sweep.num_trials} trials at once, while the sweep ran; agents play beside them, among the last kind"
    report.add("what trials' places were used for", rows, note)


def run_grid(sweep: SweepTime, folder: str) -> tuple[float, float]:
    """Runs the command.

    Returns:
        when it started, seconds since the epoch, and how long it took, seconds.
    """
    words = [f"grid={sweep.grid}", f"num_trials={sweep.num_trials}", "timeline=True", f"results={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.time()
    subprocess.run([sys.executable, "sweeps/launch.py", *words], cwd=ROOT, env=environment, check=True)
    return began, time.time() - began


def read_spans(traces: Iterable[str]) -> list[tuple[str, str, float, float]]:
    """Every span of some Chrome traces: its process, name, start in seconds since the epoch, and length in seconds."""
    epoch = time.time() - time.monotonic()
    spans = []
    for trace in traces:
        process = _PROCESS.search(trace)
        assert process is not None, "a trace names its process"
        spans += [(process[1], s.name, epoch + s.start, s.end - s.start) for s in read_chrome_trace(trace)]
    return spans


def split_time(spans: list[tuple[str, str, float, float]], total: float) -> Row:
    """Seconds by kind. The first pack of a process starts with imports and the base model, the others without.

    >>> spans = [("1", "load", 0, 2), ("1", "start", 2, 3), ("1", "round", 5, 4), ("1", "start", 9, 1)]
    >>> list(split_time(spans, 12).values())
    [4.0, 1.0, 5.0, 2.0]
    """
    seconds = dict.fromkeys(KINDS[:3], 0.0)
    loaded: set[str] = set()
    for process, name, _, length in sorted(spans, key=lambda span: span[2]):
        if name == "start" and process in loaded:
            seconds[KINDS[1]] += length
        else:
            seconds[KINDS[0] if name == "round" else KINDS[2]] += length
        if name == "start":
            loaded.add(process)
    return {**seconds, KINDS[3]: total - sum(seconds.values())}


if __name__ == "__main__":
    main()
