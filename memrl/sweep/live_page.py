"""live.html: how far a sweep is, while it runs; a light page that loads itself anew."""

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import get_args

import numpy as np

from memrl.channels import label_channel
from memrl.sweep.run_curves import PLACES, split_runs, take_at_places
from memrl.sweep.stretch import Stretch
from memrl.tables.schema import Row
from memrl.task.result import Status

_SECONDS = 3.0
"""The page is written, and loads itself anew, this often."""

_LOWEST_BITS = -2.0
_MOST_FAILURES = 5
_WIDTH, _HEIGHT = 300, 120

_STYLE = """
:root { color-scheme: light dark; --ink: #111; --soft: #55534e; --paper: #fffdf9; --rule: #d9d4c7; --line: #0b5394 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f1eee6; --soft: #b9b4a6; --paper: #16161a; --rule: #3d3c44; --line: #8ec5ff }
}
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem } p { margin: .3rem 0 }
.soft { color: var(--soft) } code { overflow-wrap: anywhere }
.bar { display: flex; height: 1rem; border: 1px solid var(--rule); margin: .6rem 0 } .bar div { min-width: 1px }
.memorized { background: #0072b2 } .budget_spent { background: #e69f00 }
.stopped { background: #cc79a7 } .failed { background: #a33c00 }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem }
figure { margin: 0 } svg { width: 100%; height: auto; border: 1px solid var(--rule) }
polyline { fill: none; stroke: var(--line); stroke-width: 1.5 } .full { stroke: var(--soft); stroke-dasharray: 3 3 }
"""


@dataclass
class _Curves:
    """Curves of one channel at one N: what each run had absorbed, at every place.

    Attributes:
        signal_bits: what there was to learn.
        absorbed: bits of each run that has ended, float64 (places,) each.
    """

    signal_bits: float
    absorbed: list[np.ndarray] = field(default_factory=list)


class LivePage:
    """Writes live.html beside local tables.

    Args:
        folder: of the tables; None: nowhere.
        name: the sweep's name.
        command: the command that runs it.

    Attributes:
        next: when it is time to write again, on time.monotonic's clock.
    """

    def __init__(self, folder: Path | None, name: str, command: str) -> None:
        self._folder, self._name, self._command = folder, name, command
        self._curves: dict[tuple[str, int], _Curves] = {}
        self._failures: Counter[str] = Counter()
        self.next = 0.0
        self._has_ended = False

    def take(self, stretch: Stretch) -> None:
        """Takes what a stretch of a pack brought."""
        if self._folder is None or not stretch.rows:
            return
        runs = split_runs(stretch.curves)
        for row in stretch.rows:
            if row["status"] == "failed":
                self.fail(f"{_label(row)}, N = {row['N']}: {row['error']}")
            elif row["cell_id"] in runs:
                group = self._curves.setdefault((_label(row), row["N"]), _Curves(row["signal_bits"]))
                group.absorbed.append(take_at_places(*runs[row["cell_id"]]))

    def fail(self, error: str) -> None:
        """Takes note of a failure, by its first line."""
        self._failures[error.strip().partition("\n")[0]] += 1

    def tick(self, told: str, statuses: Counter[str], num_cells: int, num_finished: int) -> None:
        """Writes the page if it is time to."""
        if time.monotonic() >= self.next and not self._has_ended:
            self.write(told, statuses, num_cells, num_finished)
            self.next = time.monotonic() + _SECONDS

    def write(
        self, told: str, statuses: Counter[str], num_cells: int, num_finished: int, *, has_ended: bool = False
    ) -> None:
        """Writes the page; a folder that can't be written is no reason to stop.

        Args:
            told: the live line.
            statuses: cells that have ended in this launch, by how.
            num_cells: cells of the sweep.
            num_finished: those of them that had finished before.
            has_ended: whether this is the last time, after which the page stands still.
        """
        if self._folder is None:
            return
        self._has_ended, is_whole = has_ended, num_finished + statuses.total() == num_cells
        body = [
            f"<h1>{escape(self._name)}</h1><p>{escape(told)}</p>",
            _draw_bar(statuses, num_cells, num_finished),
            *(["<p><a href='report.html'>The report</a></p>"] if has_ended and is_whole else []),
            self._list_failures(),
            self._draw_curves(),
            f"<h2>Command</h2><p><code>{escape(self._command)}</code></p>",
        ]
        refresh = "" if has_ended else f'<meta http-equiv="refresh" content="{_SECONDS:.0f}">'
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}<link rel="icon" href="data:,">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._name)}</title><style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>"
        )
        hidden = self._folder / ".live.html.tmp"
        try:
            hidden.write_text(page, "utf-8")
            hidden.replace(self._folder / "live.html")
        except OSError:
            self._folder = None

    def _list_failures(self) -> str:
        if not self._failures:
            return ""
        lines = [f"<li>{count:,} × {escape(error)}</li>" for error, count in self._failures.most_common(_MOST_FAILURES)]
        return f"<h2>Failures</h2><ul>{''.join(lines)}</ul>"

    def _draw_curves(self) -> str:
        if not self._curves:
            return ""
        panels = [_draw_panel(channel, N, curves) for (channel, N), curves in sorted(self._curves.items())]
        said = "Median of the runs that have ended, by episodes (logarithmic); dashed: all there is to learn."
        return f'<h2>Absorbed bits</h2><p class="soft">{said}</p><div class="panels">{"".join(panels)}</div>'


def serve_folder(folder: Path) -> str:
    """Serves a folder on this machine alone, from a thread that ends with the process; returns the page's address.

    Raises:
        OSError: no port is free.
    """

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing of a request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/live.html"


def _draw_bar(statuses: Counter[str], num_cells: int, num_finished: int) -> str:
    told, parts = [], []
    for status in get_args(Status):
        if statuses[status]:
            told.append(f"{statuses[status]:,} {status.replace('_', ' ')}")
            parts.append(
                f'<div class="{status}" style="width: {100 * statuses[status] / max(num_cells, 1):.2f}%"></div>'
            )
    before = [f"{num_finished:,} finished before"] if num_finished else []
    left = num_cells - num_finished - statuses.total()
    counts = ", ".join([*before, *told, f"{left:,} to go"])
    return (
        f'<div class="bar" aria-hidden="true">{"".join(parts)}</div><p class="soft">{num_cells:,} cells: {counts}</p>'
    )


def _label(row: Row) -> str:
    """The row's channel for a reader, and whether its policy was distilled."""
    return label_channel(row) + (f", distilled ({row['explore']})" if row["algorithm"] == "distill" else "")


def _draw_panel(channel: str, N: int, curves: _Curves) -> str:
    median = np.median(curves.absorbed, axis=0)
    top = curves.signal_bits * 1.05

    def height(bits: float) -> float:
        return _HEIGHT * (1 - (max(bits, _LOWEST_BITS) - _LOWEST_BITS) / (top - _LOWEST_BITS))

    points = " ".join(
        f"{_WIDTH * i / (len(PLACES) - 1):.1f},{height(bits):.1f}" for i, bits in enumerate(median.tolist())
    )
    full = height(curves.signal_bits)
    said = f"{channel}, N = {N}: {len(curves.absorbed):,} runs, {median[-1]:.2f} of {curves.signal_bits:.2f} bits"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said)}">'
        f'<polyline class="full" points="0,{full:.1f} {_WIDTH},{full:.1f}"/><polyline points="{points}"/></svg>'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )
