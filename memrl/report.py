"""Writes the report of a sweep: `python -m memrl.report grid=bitrate`."""

from collections.abc import Sequence
from itertools import zip_longest
from math import prod
from pathlib import Path

import chz

from memrl.cli import exit_on_bad_input, parse_arguments, repeat_command, run_command
from memrl.fields import field
from memrl.suggest import did_you_mean
from memrl.sweep.grid import list_grids, load_grid, read_question
from memrl.tables.places import find_grids, has_tables, own_address, reference_address

_MOST_COUNTED = 20_000
"""Cells of a grid that are expanded to count them; a larger grid is not counted."""

USAGE = """\
usage: python -m memrl.report grid=NAME [results=ADDRESS] [findings=FILE] [publish=FOLDER [curve_rows=COUNT]]
       python -m memrl.report grid=NAME,OTHER [results=ADDRESS,ADDRESS]

Reads the tables of a sweep, finished or not, and writes report.html and figures/ beside them. Where nothing has been
run yet, it reads the reference that comes with the code, sweeps/reference/<grid>. Of two sweeps it writes
versus-<OTHER>.html beside the first: the same conditions, and how far they differ. With publish=sweeps/reference/<grid>
it first writes the tables there as small files to be committed, and then reports on these.
"""


@chz.chz
class ReportRequest:
    """Which sweep to report on, and where."""

    grid: str = field(default="", doc="name of the sweep, or two names with a comma between")
    results: str | None = field(
        default=None,
        doc="address of the tables (folder, s3://, gs://), or two; unset: results/<grid>, or else its reference",
    )
    findings: str | None = field(default=None, doc="also writes the findings as Markdown to this file")
    publish: str | None = field(default=None, doc="folder for small copies of the tables, on which it then reports")
    curve_rows: int | None = field(default=None, doc="with publish, rows of curves a cell at most; unset: all")

    @chz.validate
    def _check_grid(self) -> None:
        if not self.grid:
            raise ValueError("grid must name a sweep, got none; write grid=NAME")

    @chz.validate
    def _check_published(self) -> None:
        if self.publish is not None and "," in self.grid:
            raise ValueError(f"publish takes one sweep, got grid={self.grid}")
        if self.curve_rows is not None and self.publish is None:
            raise ValueError(f"curve_rows needs publish, got curve_rows={self.curve_rows} alone")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    (request,) = parse_arguments(argv, ReportRequest, usage=USAGE)
    command = repeat_command("-m memrl.report", argv)
    with exit_on_bad_input():
        sweeps = split_sweeps(request)
        address, *others = (find_tables(sweep) for sweep in sweeps)
        from memrl.reporting import publish, report_sweep, report_two

        if others:
            report_two((address, others[0]), (sweeps[0].grid, sweeps[1].grid), command)
            return 0
        if request.publish is not None:
            address = publish(address, request.publish, request.curve_rows)
            command = repeat_command("-m memrl.report", _list_words(chz.replace(request, results=address)))
        is_grid = request.grid in list_grids(find_grids())
        commands = [*([repeat_command("sweeps/launch.py", [f"grid={request.grid}"])] if is_grid else []), command]
        num_planned, question = count_planned(request.grid), read_question(request.grid, find_grids())
        report_sweep(address, request.grid, num_planned, question, commands, request.findings)
    return 0


def _list_words(request: ReportRequest) -> list[str]:
    """The command line that writes the page and the findings again, from the tables as they lie there."""
    words = {"grid": request.grid, "results": request.results, "findings": request.findings}
    return [f"{name}={value}" for name, value in words.items() if value is not None]


def split_sweeps(request: ReportRequest) -> list[ReportRequest]:
    """One request per sweep, of one sweep or two.

    Raises:
        ValueError: more than two sweeps, or not as many addresses as sweeps.
    """
    grids, addresses = request.grid.split(","), request.results.split(",") if request.results is not None else []
    if len(grids) == 1 and len(addresses) == 2:
        grids *= 2
    if len(grids) > 2:
        raise ValueError(f"grid must name one sweep or two, got {request.grid}")
    if addresses and len(addresses) != len(grids):
        raise ValueError(f"results must hold one address for each sweep, got {request.results}")
    return [ReportRequest(grid=grid, results=address) for grid, address in zip_longest(grids, addresses)]


def find_tables(request: ReportRequest) -> str:
    """The address to report on, before anything heavy is imported; says so where it is the reference.

    Raises:
        ValueError: the address is local, and holds no table.
    """
    address = request.results if request.results is not None else own_address(request.grid)
    if "://" in address or has_tables(address):
        return address
    reference = reference_address(request.grid)
    if request.results is None and has_tables(reference):
        print(f"{address} has no tables yet; this is the reference, {reference}")
        return reference
    run = [path.name for path in Path("results").glob("*") if has_tables(str(path))]
    known = sorted({*run, *list_grids(find_grids())})
    if request.results is not None or request.grid in known:
        raise ValueError(f"results must hold the tables of a sweep, got none in {address}")
    raise ValueError(f"unknown grid {request.grid!r}{did_you_mean(request.grid, known) if known else ''}")


def count_planned(grid: str) -> int | None:
    """Cells that the grid's file describes; None where there is no such file or it is too large to count."""
    if grid not in list_grids(find_grids()):
        return None
    found = load_grid(grid, find_grids())
    most = prod(len(entries) for entries in found.axes.values()) * len(found.seeds)
    return len(found.cells()) if most <= _MOST_COUNTED else None


if __name__ == "__main__":
    run_command(main)
