"""What a sweep ends with: its table, its cells in a log, the report, and the reference beside it."""

from collections.abc import Collection
from pathlib import Path

from memrl.analysis import page, reference
from memrl.sweep.console import SteadyConsole
from memrl.sweep.grid import read_question
from memrl.sweep.plan import describe_addresses
from memrl.sweep.summary import summarize
from memrl.tables.places import find_grids, has_tables, reference_address
from memrl.tables.store import TableStore


def print_table(store: TableStore, cell_ids: Collection[str], console: SteadyConsole) -> None:
    """Prints what it took to memorize, by N and channel, and where the tables lie."""
    title, table = summarize(store, cell_ids)
    console.print(f"[bold]{title}[/bold]", soft_wrap=True, highlight=False)
    if table.row_count:
        narrowest = sum(2 + (column.min_width or 0) for column in table.columns)
        table.width = narrowest if console.width < narrowest else None
        console.print(table, crop=False, no_wrap=True, overflow="ignore")
    console.say(describe_addresses(store))


def write_report(store: TableStore, grid: str, num_planned: int, command: str, console: SteadyConsole) -> bool:
    """Writes the report, and says where it is; or why there is none, and returns False."""
    try:
        question = read_question(grid, find_grids())
        with console.status("drawing the report"):
            report = page.write_report(
                store.address, grid=grid, num_planned=num_planned, command=command, question=question
            )
    except Exception as error:  # a picture that can't be drawn must not hide that the cells are measured
        console.say(f"no report: {type(error).__name__}: {error}")
        return False
    console.say(f"report: {report}")
    return True


def compare_with_reference(store: TableStore, grid: str, console: SteadyConsole) -> None:
    """Says in how many conditions the medians agree with the grid's reference, where it has one."""
    address = reference_address(grid)
    if not has_tables(address) or Path(address).resolve() == Path(store.address).resolve():
        return
    for line in reference.compare_with_reference(store, TableStore(address)):
        console.say(line)
