"""The report: one self-contained page, and its figures as files."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from memrl.analysis.figure_data import Figure, collect_figures, main_N
from memrl.analysis.interactive_figures import View, draw_views
from memrl.analysis.published import LLM_ARM, MEMORIZATION_STUDY
from memrl.analysis.static_figures import save_figures
from memrl.analysis.style import agent_label, channel_label
from memrl.analysis.summary import Summary, summarize_sweep
from memrl.analysis.verdicts import HYPOTHESES, format_estimate, format_number

_SIGNS = {"supported": "✓", "refuted": "✗", "undecided": "?"}
_MOST_TABLE_ROWS = 150
_MOST_FAILED_ROWS = 200
_LABELS = {
    "agent": "agent",
    "channel": "channel",
    "num_cells": "runs",
    "num_reached": "reached 1/2",
    "num_memorized": "reached 0.9",
    "e50": "E50",
    "e90": "E90",
    "bits_per_episode": "bits/episode",
    "rate_vs_capacity": "rate / capacity",
    "e50_vs_optimal": "E50 / best agent",
    "e50_vs_tabular_pg": "E50 / tabular PG",
    "learning_rate": "learning rate",
    "learning_rates": "learning rate",
    "lora_rank": "rank",
    "capacity_bits": "capacity",
    "capacity_best_bits": "capacity",
    "delta_aic": "ΔAIC",
    "p_overhead": "p(overhead)",
    "p_power": "p(power)",
    "overhead": "c",
    "per_secret": "a",
}
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


@dataclass(frozen=True)
class Column:
    """A column of a table on the page."""

    label: str
    is_text: bool


@dataclass(frozen=True)
class Table:
    """A table on the page: each cell is its text, followed by the number to sort by where the text is none."""

    columns: list[Column]
    rows: list[list[list[Any]]]


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
    place = Path(folder) if folder is not None else report_folder(address, grid)
    summary = summarize_sweep(address, num_planned)
    place.mkdir(parents=True, exist_ok=True)
    figures = collect_figures(summary)
    save_figures(figures, place / "figures", main_N(summary))
    for name, figure in figures.items():
        figure.data.to_csv(place / "figures" / f"{name}.csv", index=False, float_format="%.6g")
    page = place / "report.html"
    hidden = place / ".report.html.tmp"
    hidden.write_text(render_page(summary, figures, grid, command or f"python sweeps/launch.py grid={grid}"), "utf-8")
    hidden.replace(page)
    return page


def report_folder(address: str, grid: str) -> Path:
    """Where the report of some tables goes: beside them, or results/<grid> if they do not lie in a local folder.

    >>> report_folder("results/smoke", "smoke").as_posix(), report_folder("s3://bucket/x", "smoke").as_posix()
    ('results/smoke', 'results/smoke')
    """
    return Path("results", grid) if "://" in address else Path(address).expanduser()


def render_page(summary: Summary, figures: dict[str, Figure], grid: str, command: str) -> str:
    """The page's HTML, with styles, scripts, plotly and all data inside."""
    views = draw_views(figures)
    templates = resources.files("memrl.analysis") / "templates"
    # The template is HTML, and everything that is not Markup is escaped.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((templates / "report.html.j2").read_text("utf-8"))
    settings = tabulate(summary.conditions, _setting_columns(summary.conditions))
    described = [_describe_figure(figure, views[name], summary) for name, figure in figures.items()]
    return template.render(
        grid=grid,
        css=Markup((templates / "report.css").read_text("utf-8")),
        js=Markup((templates / "report.js").read_text("utf-8")),
        plotly=Markup(_packed_plotly()),
        lede=_lede(summary),
        notices=_notices(summary),
        sections=_sections(figures, summary),
        signs=_SIGNS,
        hypotheses=HYPOTHESES,
        verdicts=[asdict(verdict) | {"rule": _rule(verdict.region)} for verdict in summary.verdicts],
        figures=described,
        scaling=_scaling_table(summary.scaling),
        settings=settings,
        choices=_choices(settings),
        failed=_failed_table(summary.failed),
        commands=f"{command}\npython -m memrl.report grid={grid}",
        facts=_facts(summary),
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


def _lede(summary: Summary) -> str:
    lora = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    N = f"N = {lora['N'].min():,} to {lora['N'].max():,}" if lora["N"].nunique() > 1 else f"N = {lora['N'].iloc[0]:,}"
    return (
        f"{summary.num_finished:,} policies memorized secrets over {lora['channel'].nunique()} channels, {N}, with "
        f"{summary.num_secrets:,} independent secrets. Every estimate stands with its 95 % interval."
    )


def _notices(summary: Summary) -> list[str]:
    notices = []
    planned = summary.num_planned
    if planned is not None and summary.num_finished < planned:
        notices.append(
            f"This sweep is not finished: {summary.num_finished:,} of {planned:,} cells have a row. Numbers will move, "
            "and cells that finish early are the fast ones of their pack."
        )
    if len(summary.failed):
        first = str(summary.failed["error"].iloc[0])
        notices.append(f"{len(summary.failed):,} cells failed and are listed below; the first: {first}")
    leaks = summary.leaks[(summary.leaks["verdict"] == "leak").to_numpy()] if len(summary.leaks) else summary.leaks
    for row in leaks.to_dict("records"):
        notices.append(
            f"{channel_label(row['channel'])} at N = {row['N']}: the policies absorbed more than was observed."
        )
    if not summary.estimates["held_out"].all():
        notices.append("Some settings were chosen on the secrets that are reported, as the other half has not run yet.")
    return notices


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
        "sentences": _leak_sentences(summary.leaks) if figure.name == "leak" else [],
        "table": tabulate(figure.data, columns) if short else None,
    }


def _legend(figure: Figure) -> list[str]:
    entries = list(_LEGENDS.get(figure.name, ()))
    if figure.name == "episodes":
        dashes = {"optimal": "···", "greedy": "–·–", "uniform": "– –", "tabular_pg": "—  —"}
        agents = [agent for agent in figure.data["agent"].unique() if agent not in ("lora", "published")]
        entries[1:1] = [f"gray {dashes.get(agent, '···')} {agent_label(agent)}" for agent in agents]
    return entries


def _leak_sentences(leaks: pd.DataFrame) -> list[str]:
    counts = leaks["verdict"].value_counts()
    told = ", ".join(f"{count} × {verdict}" for verdict, count in counts.items())
    worst = leaks["evidence_bits"].max()
    return [
        f"Over {len(leaks)} combinations of channel and N: {told}. The largest evidence for a leak is "
        f"{format_number(worst)} bits; an honest run exceeds {leaks['evidence_limit_bits'].iloc[0]:.2f} bits at one "
        "update with probability at most 1 %."
    ]


def _scaling_table(scaling: pd.DataFrame) -> Table | None:
    if scaling.empty:
        return None
    data = scaling.assign(
        range=[f"{a} to {b}" for a, b in zip(scaling["smallest_N"], scaling["largest_N"], strict=True)]
    )
    if "conclusion" in data:
        data["conclusion"] = data["conclusion"].fillna("–")
    names = ["agent", "channel", "range", "num_left_out", "exponent", "overhead", "per_secret"]
    names += ["delta_aic", "p_overhead", "p_power", "conclusion"]
    return tabulate(data, [name for name in names if name in data])


def _failed_table(failed: pd.DataFrame) -> Table | None:
    if failed.empty:
        return None
    return tabulate(failed.head(_MOST_FAILED_ROWS), [str(name) for name in failed])


def _setting_columns(conditions: pd.DataFrame) -> list[str]:
    start = list(conditions.columns[: conditions.columns.get_loc("num_cells")])
    constant = {name for name in ("model",) if conditions[name].nunique(dropna=False) == 1}
    numbers = ["num_cells", "num_memorized", "e50", "e90", "bits_per_episode"]
    return [*(name for name in start if name not in constant), *numbers]


def _choices(settings: Table) -> list[dict[str, Any]]:
    """The selects above the table: agent, channel and N, where there is something to choose."""
    choices = []
    for index, column in enumerate(settings.columns):
        values = list(dict.fromkeys(row[index][0] for row in settings.rows))
        if column.label in ("agent", "channel", "N") and len(values) > 1:
            choices.append({"label": column.label, "column": index, "values": values})
    return choices


def tabulate(data: pd.DataFrame, columns: Sequence[str]) -> Table:
    """A table for readers: an estimate and its interval become one column, sorted by the estimate.

    >>> frame = pd.DataFrame({"channel": ["sft"], "e50": [2.0], "e50_lower": [1.0], "e50_upper": [2.0]})
    >>> tabulate(frame, ["channel", "e50"]).rows
    [[['SFT'], ['2 [1, 2]', 2.0]]]
    """
    heads, cells = [], []
    for name in columns:
        values = data[name]
        is_text = not pd.api.types.is_numeric_dtype(values)
        heads.append(Column(_LABELS.get(name, name.replace("_", " ")), is_text))
        cells.append(_format_column(data, name, is_text))
    return Table(heads, [list(row) for row in zip(*cells, strict=True)])


def _format_column(data: pd.DataFrame, name: str, is_text: bool) -> list[list[Any]]:
    values = data[name].tolist()
    if is_text:
        words = {"channel": channel_label, "agent": agent_label}.get(name, str)
        return [[words(value) if isinstance(value, str) else "–"] for value in values]
    if f"{name}_lower" in data:
        ends = data[[f"{name}_lower", f"{name}_upper"]].to_numpy(dtype=float)
        texts = [
            "–"
            if math.isnan(value)
            else format_estimate(value, low, high)
            if not math.isnan(low)
            else format_number(value)
            for value, (low, high) in zip(values, ends, strict=True)
        ]
    elif name in ("N", "num_cells", "num_reached", "num_memorized", "seed", "lora_rank", "num_left_out"):
        texts = [format_number(value, 9).replace(",", "") for value in values]
    else:
        texts = [format_number(value) for value in values]
    return [
        [text, None if math.isnan(v) else float(np.clip(v, -1e300, 1e300))]
        for text, v in zip(texts, values, strict=True)
    ]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    made = summary.provenance
    facts = [
        ("tables", summary.address),
        ("seeds", made.seeds),
        ("revision", ", ".join(made.revisions) or "not a checkout"),
        (
            "versions",
            ", ".join(f"{name} {' or '.join(found)}" for name, found in made.versions.items()) or "not recorded",
        ),
    ]
    if made.shared:
        facts.append(("shared fields", " ".join(f"{name}={value}" for name, value in made.shared.items())))
    return facts
