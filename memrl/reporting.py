"""The work of `memrl.report`: pages, findings and published tables of sweeps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memrl.analysis import comparison_page, figure_data, findings, page, summary
from memrl.errors import WriteError, tell_error
from memrl.tables.places import local_folder
from memrl.tables.publish import publish_tables
from memrl.tables.store import TableStore


def report_sweep(
    address: str, grid: str, num_planned: int | None, question: str, commands: Sequence[str], findings_file: str | None
) -> None:
    """Writes the page of a sweep and its findings, and prints its verdicts.

    Args:
        address: of the tables.
        grid: the sweep's name.
        num_planned: cells of the whole sweep, where known.
        question: what the grid is for, one line.
        commands: the commands that ran the sweep and made the report.
        findings_file: also writes the findings as Markdown to this file.

    Raises:
        ValueError: there is no finished cell at the address.
        WriteError: the page can't be written.
    """
    folder = local_folder(address)
    measured = summary.summarize_sweep(address, num_planned)
    figures = figure_data.collect_figures(measured)
    with _told_in_one_line():
        written = page.write_page(measured, figures, grid, folder, commands, question)
        if findings_file is not None:
            findings.write_findings(measured, figures, Path(findings_file), folder, list(commands))
            print(f"findings: {findings_file}")
    for verdict in measured.verdicts:
        print(f"{verdict.name} {verdict.outcome}{measured.provisional}: {verdict.sentence}")
    print(f"report: {written}")


def report_two(addresses: tuple[str, str], grids: tuple[str, str], command: str) -> None:
    """Writes the page of two sweeps side by side, beside the first, and prints how far they differ.

    Raises:
        ValueError: there is no finished cell at an address.
        WriteError: the page can't be written.
    """
    names = addresses if grids[0] == grids[1] else grids
    with _told_in_one_line():
        versus, answer = comparison_page.write_comparison(addresses, names, local_folder(addresses[0]), command)
    print(f"{answer}\nreport: {versus}")


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"the report must be written, got {error.filename} ({error.strerror})") from error


def publish(address: str, target: str, curve_rows: int | None) -> str:
    """Writes small copies of the tables; returns where they lie.

    Raises:
        ValueError: the tables can't be read, or not be written there.
    """
    try:
        publish_tables(TableStore(address), target, curve_rows)
    except OSError as error:
        raise ValueError(f"publish must be a writable folder, got {target!r} ({tell_error(error)})") from error
    print(f"published: {target}")
    return target
