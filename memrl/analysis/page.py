"""The report: one self-contained page, and its figures as files."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from memrl.analysis.figure_data import Figure, collect_figures, main_N
from memrl.analysis.interactive_figures import View, draw_views
from memrl.analysis.published import LLM_ARM, MEMORIZATION_STUDY
from memrl.analysis.sentences import SCALING, describe_leaks, describe_scope, list_facts, list_notices
from memrl.analysis.static_figures import save_figures
from memrl.analysis.style import agent_label
from memrl.analysis.summary import Summary, summarize_sweep
from memrl.analysis.tabulation import Table, tabulate, tabulate_failed, tabulate_scaling, tabulate_settings
from memrl.analysis.verdicts import HYPOTHESES
from memrl.analysis.wording import format_number

_SIGNS = {"supported": "✓", "refuted": "✗", "undecided": "?"}
_MOST_TABLE_ROWS = 150
_LEGENDS = {
    "episodes": (
        "● with bar: LoRA policy, 95 % interval",
        "↑ not reached",
        "☆ published (MLP)",
        "thin gray: E = N",
    ),
    "learning": ("– – observed by an ideal Bayes observer", "— absorbed by the policy", "··· log₂ N"),
    "maps": ("framed: best learning rate of a rank", "× median not reached within the budget"),
}
_TABLE_COLUMNS = {
    "ledger": [
        "channel",
        "N",
        "capacity_bits",
        "observed_rate",
        "absorbed_rate",
        "exploration_loss",
        "absorption_loss",
    ],
    "episodes": [
        "agent",
        "channel",
        "N",
        "num_cells",
        "num_reached",
        "e50",
        "e50_vs_optimal",
        "e50_vs_tabular_pg",
        "learning_rates",
    ],
    "rate": ["agent", "channel", "N", "capacity_best_bits", "bits_per_episode", "rate_vs_capacity"],
    "prior": ["env_type", "N", "model", "prior_kl_bits", "malformed_mass"],
}


def write_report(
    address: str,
    *,
    grid: str | None = None,
    num_planned: int | None = None,
    folder: Path | str | None = None,
    command: str | None = None,
) -> Path:
    """Writes report.html, and figures/ with every figure as PNG, SVG and CSV.

    Args:
        address: of the tables.
        grid: the sweep's name; unset: the address's last part.
        num_planned: cells of the whole sweep, where the caller knows, so that the report can say how many are missing.
        folder: where the report goes; unset: beside local tables, or results/<grid> for tables elsewhere.
        command: the command that ran the sweep.

    Returns:
        The path of report.html.

    Raises:
        ValueError: there is no finished cell at the address.
    """
    grid = grid or address.rstrip("/").rpartition("/")[2]
    summary = summarize_sweep(address, num_planned)
    place = Path(folder) if folder is not None else report_folder(address, grid)
    commands = [command or f"python sweeps/launch.py grid={grid}", f"python -m memrl.report grid={grid}"]
    return write_page(summary, collect_figures(summary), grid, place, commands)


def write_page(summary: Summary, figures: dict[str, Figure], grid: str, folder: Path, commands: Sequence[str]) -> Path:
    """Writes report.html and figures/ for a sweep that is summarized already.

    Args:
        summary: the sweep's answers.
        figures: what is drawn (collect_figures).
        grid: the sweep's name.
        folder: where the files go; made if missing.
        commands: the commands that ran the sweep and made the report.

    Returns:
        The path of report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_figures(figures, folder / "figures", main_N(summary))
    for name, figure in figures.items():
        figure.data.to_csv(folder / "figures" / f"{name}.csv", index=False, float_format="%.6g")
    page, hidden = folder / "report.html", folder / ".report.html.tmp"
    hidden.write_text(render_page(summary, figures, grid, commands), "utf-8")
    hidden.replace(page)
    return page


def report_folder(address: str, grid: str) -> Path:
    """Where the report of some tables goes: beside them, or results/<grid> if they do not lie in a local folder.

    >>> report_folder("results/smoke", "smoke").as_posix(), report_folder("s3://bucket/x", "smoke").as_posix()
    ('results/smoke', 'results/smoke')
    """
    return Path("results", grid) if "://" in address else Path(address).expanduser()


def render_page(summary: Summary, figures: dict[str, Figure], grid: str, commands: Sequence[str]) -> str:
    """The page's HTML, with styles, scripts, plotly and all data inside."""
    views = draw_views(figures)
    templates = resources.files("memrl.analysis") / "templates"
    # The template is HTML, and everything that is not Markup is escaped.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((templates / "report.html.j2").read_text("utf-8"))
    settings = tabulate_settings(summary.conditions)
    described = [_describe_figure(figure, views[name], summary) for name, figure in figures.items()]
    return template.render(
        grid=grid,
        css=Markup((templates / "report.css").read_text("utf-8")),
        js=Markup((templates / "report.js").read_text("utf-8")),
        plotly=Markup(_packed_plotly()),
        lede=describe_scope(summary),
        notices=list_notices(summary),
        sections=_sections(figures, summary),
        signs=_SIGNS,
        hypotheses=HYPOTHESES,
        verdicts=[asdict(verdict) | {"rule": _rule(verdict.region)} for verdict in summary.verdicts],
        figures=described,
        scaling=tabulate_scaling(summary.scaling),
        scaling_text=SCALING,
        settings=settings,
        choices=_choices(settings),
        failed=tabulate_failed(summary.failed),
        commands="\n".join(commands),
        facts=list_facts(summary),
        published_source=MEMORIZATION_STUDY,
        llm_arm=LLM_ARM,
        figure_data=_to_script({name: [asdict(view) for view in of_figure] for name, of_figure in views.items()}),
        settings_data=_to_script({"columns": [{"text": c.is_text} for c in settings.columns], "rows": settings.rows}),
    )


def _packed_plotly() -> str:
    """plotly.js as gzip in base64: 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")


def _to_script(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _sections(figures: dict[str, Figure], summary: Summary) -> list[tuple[str, str]]:
    short = {
        "ledger": "Ledger",
        "episodes": "E against N",
        "rate": "Rate and capacity",
        "learning": "Learning curves",
        "maps": "Rank × learning rate",
        "prior": "Prior",
        "leak": "Leak check",
    }
    sections = [("verdicts", "Verdicts"), *((name, short[name]) for name in figures)]
    if len(summary.scaling):
        sections.append(("scaling", "Scaling"))
    sections.append(("table", "Every setting"))
    if len(summary.failed):
        sections.append(("failed", "Failed cells"))
    return [*sections, ("reproduce", "Reproduce")]


def _rule(region: tuple[float, float]) -> str:
    if any(math.isnan(end) for end in region):
        return ""
    return f"between {format_number(region[0])} and {format_number(region[1])}"


def _describe_figure(figure: Figure, views: Sequence[View], summary: Summary) -> dict[str, Any]:
    """What the template needs of a figure."""
    labels = [view.label for view in views]
    wanted = f"N = {main_N(summary)}"
    columns = [name for name in _TABLE_COLUMNS.get(figure.name, ()) if name in figure.data]
    short = bool(columns) and len(figure.data) <= _MOST_TABLE_ROWS
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "views": labels,
        "first_view": wanted if wanted in labels else labels[0],
        "legend": _legend(figure),
        "sentences": describe_leaks(summary.leaks) if figure.name == "leak" else [],
        "table": tabulate(figure.data, columns) if short else None,
    }


def _legend(figure: Figure) -> list[str]:
    entries = list(_LEGENDS.get(figure.name, ()))
    if figure.name == "episodes":
        dashes = {"optimal": "···", "greedy": "–·–", "uniform": "– –", "tabular_pg": "—  —"}
        agents = [agent for agent in figure.data["agent"].unique() if agent not in ("lora", "published")]
        entries[1:1] = [f"gray {dashes.get(agent, '···')} {agent_label(agent)}" for agent in agents]
    return entries


def _choices(settings: Table) -> list[dict[str, Any]]:
    """The selects above the table: agent, channel and N, where there is something to choose."""
    choices = []
    for index, column in enumerate(settings.columns):
        values = list(dict.fromkeys(row[index][0] for row in settings.rows))
        if column.label in ("agent", "channel", "N") and len(values) > 1:
            choices.append({"label": column.label, "column": index, "values": values})
    return choices
