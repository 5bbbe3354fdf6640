"""findings.md: the same answers as the report, in plain Markdown."""

import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2

from memrl.analysis.figure_data import Figure, first_view, main_N
from memrl.analysis.sentences import (
    KEPT_NOTE,
    LEDGER_NOTE,
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
from memrl.analysis.summary import Summary
from memrl.analysis.tabulation import (
    Table,
    name_keys,
    split_agents,
    tabulate,
    tabulate_edges,
    tabulate_kept,
    tabulate_lost,
    tabulate_objectives,
    tabulate_scaling,
)
from memrl.analysis.verdicts.judge import describe_late

_TABLES = {
    "episodes": (
        "channel",
        "N",
        "num_cells",
        "num_reached",
        "e50",
        "e50_vs_optimal",
        "e50_vs_tabular_pg",
        "learning_rates",
    ),
    "rate": ("channel", "N", "capacity_best_bits", "bits_per_episode", "rate_vs_capacity"),
}

_LEDGER_COLUMNS = ("channel", "capacity_bits", "observed_rate", "absorbed_rate", "kept")
_LENGTH_COLUMNS = ("name", "signal_bits", "num_cells", "num_reached", "half_bits", "learning_rates", "exponent")


@dataclass(frozen=True)
class Part:
    """A section: the drawing of this stem where there is one, a note on how to read it, sentences, and a table."""

    title: str
    drawing: str = ""
    sentences: list[str] = field(default_factory=list)
    table: Table | None = None
    note: str = ""


def write_findings(
    summary: Summary, figures: dict[str, Figure], path: Path, report_folder: Path, commands: list[str]
) -> None:
    """Writes the findings of a sweep as Markdown.

    Args:
        summary: the sweep's answers.
        figures: those that the report drew.
        path: the file.
        report_folder: where report.html and figures/ lie; links are relative to the file.
        commands: the commands that ran the sweep and made this file.
    """
    templates = resources.files("memrl.analysis") / "templates"
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((templates / "findings.md.j2").read_text("utf-8"))
    text = template.render(
        base=Path(os.path.relpath(report_folder, path.parent)).as_posix(),
        command=list_commands(summary, commands)[-1],
        commands="\n".join(list_commands(summary, commands)),
        answer=answer_question(summary),
        provisional=summary.provisional,
        lede=describe_scope(summary),
        notices=list_notices(summary),
        verdicts=summary.verdicts,
        late_regions=describe_late(),
        parts=_list_parts(summary, figures),
        facts=list_facts(summary),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n", "utf-8")


def _list_parts(summary: Summary, figures: dict[str, Figure]) -> list[Part]:
    def stem(name: str) -> str:
        return first_view(figures[name], main_N(summary)).stem if name in figures else ""

    ledger, scaling = summary.ledger[(summary.ledger["N"] == main_N(summary)).to_numpy()], summary.scaling
    own_scaling, _ = split_agents(scaling)
    checks = [*describe_leaks(summary.leaks), *describe_prior(summary.prior)]
    episodes, rates = (_tabulate_lora(figures[name], columns) for name, columns in _TABLES.items())
    parts = [
        Part("Bits per episode", stem("rate"), [], rates),
        Part(
            f"Where the bits of an episode go (N = {main_N(summary)})",
            stem("ledger"),
            table=tabulate(ledger, name_keys(_LEDGER_COLUMNS, ledger)) if len(ledger) else None,
            note=LEDGER_NOTE if len(ledger) else "",
        ),
        Part("Episodes to half of the bits", stem("lengths"), table=_tabulate_lengths(figures)),
        Part("What each objective kept", table=tabulate_kept(summary.ledger), note=KEPT_NOTE),
        Part("Learning curves", stem("learning")),
        Part("Reached, then lost", stem("collapse"), describe_collapse(summary.collapse), tabulate_lost(summary.lost)),
        Part("Episodes to memorize", stem("episodes"), compare_with_published(summary.estimates), episodes),
        Part("Beside agents that need no network", stem("agents")),
        Part(
            "An exponent or an overhead?",
            "",
            describe_scaling(scaling),
            tabulate_scaling(own_scaling),
            SCALING if len(own_scaling) else "",
        ),
        Part("Every objective, and group size", stem("groups"), table=tabulate_objectives(summary.objectives)),
        Part("Interference and what is memorized", stem("interference")),
        Part("Rank and learning rate", stem("maps"), describe_edges(summary.edges), tabulate_edges(summary.edges)),
        Part("Checks", "", checks),
    ]
    return [part for part in parts if part.sentences or part.table or part.drawing]


def _tabulate_lengths(figures: dict[str, Figure]) -> Table | None:
    return tabulate(figures["lengths"].data, _LENGTH_COLUMNS) if "lengths" in figures else None


def _tabulate_lora(figure: Figure, columns: tuple[str, ...]) -> Table:
    data = figure.data
    own = data[(data["agent"] == "lora").to_numpy()] if "agent" in data else data
    return tabulate(own, name_keys(columns, own))
