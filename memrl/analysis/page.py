"""The report: one self-contained page, and its figures as files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from memrl.analysis.charts import Drawing, draw_figure, save_drawings
from memrl.analysis.figure_data import Figure, collect_figures, first_view, main_N
from memrl.analysis.published import LLM_ARM, MEMORIZATION_STUDY
from memrl.analysis.sentences import (
    KEPT_NOTE,
    SCALING,
    answer_question,
    compare_with_published,
    describe_collapse,
    describe_edges,
    describe_leaks,
    describe_prior,
    describe_scaling,
    describe_scope,
    list_commands,
    list_facts,
    list_notices,
)
from memrl.analysis.summary import Summary, summarize_sweep
from memrl.analysis.tabulation import (
    Table,
    name_keys,
    split_agents,
    tabulate,
    tabulate_edges,
    tabulate_failed,
    tabulate_kept,
    tabulate_lost,
    tabulate_objectives,
    tabulate_scaling,
    tabulate_settings,
)
from memrl.analysis.verdicts.judge import describe_late
from memrl.tables.places import local_folder

_SIGNS = {"supported": "✓", "refuted": "✗", "undecided": "?"}
_MOST_TABLE_ROWS = 150
_TABLE_COLUMNS = {
    "rate": ["channel", "N", "num_cells", "capacity_best_bits", "bits_per_episode", "rate_vs_capacity"],
    "lengths": ["name", "signal_bits", "num_cells", "num_reached", "half_bits", "learning_rates", "exponent"],
    "ledger": [
        "channel",
        "N",
        "capacity_bits",
        "observed_rate",
        "absorbed_rate",
        "exploration_loss",
        "absorption_loss",
        "kept",
    ],
    "groups": ["channel", "N", "objective_name", "group_size", "num_cells", "num_reached", "e50"],
    "interference": ["channel", "base", "objective", "interference", "num_cells", "num_reached"],
    "episodes": ["channel", "N", "num_cells", "num_reached", "e50", "learning_rates"],
    "agents": ["channel", "N", "agent", "e50", "e50_vs_optimal", "e50_vs_tabular_pg"],
}


def write_report(
    address: str,
    *,
    grid: str | None = None,
    num_planned: int | None = None,
    folder: Path | str | None = None,
    command: str | None = None,
    question: str = "",
) -> Path:
    """Writes report.html, and figures/ with every figure as SVG, PDF, PNG and CSV.

    Args:
        address: of the tables.
        grid: the sweep's name; unset: the address's last part.
        num_planned: cells of the whole sweep, where the caller knows, so that the report can say how many are missing.
        folder: where the report goes; unset: beside local tables, or in results/ for tables elsewhere.
        command: the command that ran the sweep.
        question: what the grid is for, one line.

    Returns:
        The path of report.html.

    Raises:
        ValueError: there is no finished cell at the address.
    """
    grid = grid or address.rstrip("/").rpartition("/")[2]
    summary = summarize_sweep(address, num_planned)
    place = Path(folder) if folder is not None else local_folder(address)
    commands = [command or f"python sweeps/launch.py grid={grid}", f"python -m memrl.report grid={grid}"]
    return write_page(summary, collect_figures(summary), grid, place, commands, question)


def write_page(
    summary: Summary,
    figures: Mapping[str, Figure],
    grid: str,
    folder: Path,
    commands: Sequence[str],
    question: str = "",
) -> Path:
    """Writes report.html and figures/ for a sweep that is summarized already.

    Args:
        summary: the sweep's answers.
        figures: what is drawn (collect_figures).
        grid: the sweep's name.
        folder: where the files go; made if missing.
        commands: the commands that ran the sweep and made the report.
        question: what the grid is for, one line.

    Returns:
        The path of report.html.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawings = {name: draw_figure(figure) for name, figure in figures.items()}
    for name, figure in figures.items():
        save_drawings(drawings[name], folder / "figures")
        (folder / "figures" / f"{name}.csv").write_text(to_csv(figure), "utf-8")
    page, hidden = folder / "report.html", folder / ".report.html.tmp"
    hidden.write_text(render_page(summary, figures, drawings, grid, commands, question), "utf-8")
    hidden.replace(page)
    return page


def to_csv(figure: Figure) -> str:
    """The numbers of a figure as CSV, without what its marks say."""
    return figure.data.drop(columns="said").to_csv(index=False, float_format="%.6g")


def render_page(
    summary: Summary,
    figures: Mapping[str, Figure],
    drawings: Mapping[str, Sequence[Drawing]],
    grid: str,
    commands: Sequence[str],
    question: str,
) -> str:
    """The page's HTML, with styles, script, drawings and all data inside."""
    settings = tabulate_settings(summary.conditions)
    described = {name: describe_figure(figure, drawings[name], main_N(summary)) for name, figure in figures.items()}
    return read_template("report.html.j2").render(
        grid=grid,
        question=question,
        lede=describe_scope(summary),
        notices=list_notices(summary),
        signs=_SIGNS,
        verdicts=summary.verdicts,
        late_regions=describe_late(),
        provisional=summary.provisional,
        answer=answer_question(summary),
        figures=described,
        collapse=describe_collapse(summary.collapse),
        published=compare_with_published(summary.estimates),
        checks=[*describe_leaks(summary.leaks), *describe_prior(summary.prior)],
        kept=tabulate_kept(summary.ledger),
        kept_note=KEPT_NOTE,
        lost=tabulate_lost(summary.lost),
        objectives=tabulate_objectives(summary.objectives),
        edges=describe_edges(summary.edges),
        edges_table=tabulate_edges(summary.edges),
        growth=describe_scaling(summary.scaling),
        scaling=[tabulate_scaling(rows) for rows in split_agents(summary.scaling)],
        scaling_text=SCALING,
        settings=settings,
        choices=_choices(settings),
        failed=tabulate_failed(summary.failed),
        commands="\n".join(list_commands(summary, commands)),
        facts=list_facts(summary),
        revision=", ".join(summary.provenance.revisions),
        published_source=MEMORIZATION_STUDY,
        llm_arm=LLM_ARM,
        settings_data=_to_script({"columns": [{"text": c.is_text} for c in settings.columns], "rows": settings.rows}),
    )


def read_template(name: str) -> jinja2.Template:
    """A template of the package; it is HTML, and everything that is not Markup is escaped."""
    loader = jinja2.PackageLoader("memrl.analysis")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name)


def _to_script(value: object) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def describe_figure(
    figure: Figure, drawings: Sequence[Drawing], N: int | None = None, folder: str = "figures"
) -> dict[str, object]:
    """What a template needs of a figure: the drawing of this N is shown, others are folded."""
    columns = name_keys(_TABLE_COLUMNS.get(figure.name, ()), figure.data)
    short = bool(columns) and len(figure.data) <= _MOST_TABLE_ROWS
    shown = [
        {
            "label": drawing.view.label,
            "stem": drawing.view.stem,
            "is_first": drawing.view.stem == first_view(figure, N).stem,
            "svgs": {width.name: Markup(svg) for width, svg in drawing.svgs.items()},
        }
        for drawing in drawings
    ]
    return {
        "name": figure.name,
        "folder": folder,
        "title": figure.title,
        "caption": figure.caption,
        "drawings": shown,
        "table": tabulate(figure.data, columns) if short else None,
    }


def _choices(settings: Table) -> list[dict[str, object]]:
    """The selects above the table: agent, channel and N, where there is something to choose."""
    choices = []
    for index, column in enumerate(settings.columns):
        values = list(dict.fromkeys(row[index][0] for row in settings.rows))
        if column.label in ("agent", "channel", "N") and len(values) > 1:
            choices.append({"label": column.label, "column": index, "values": values})
    return choices
