"""findings.md: the same answers as the report, in plain Markdown."""

import os
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd

from memrl.analysis.figure_data import Figure, main_N
from memrl.analysis.sentences import (
    LEDGER_NOTE,
    SCALING,
    compare_with_published,
    describe_leaks,
    describe_ledger,
    describe_scope,
    list_facts,
    list_notices,
)
from memrl.analysis.summary import Summary
from memrl.analysis.tabulation import Table, tabulate, tabulate_scaling
from memrl.analysis.verdicts import HYPOTHESES

_EPISODE_COLUMNS = (
    "channel",
    "N",
    "num_cells",
    "num_reached",
    "e50",
    "e50_vs_optimal",
    "e50_vs_tabular_pg",
    "learning_rates",
)
_RATE_COLUMNS = ("channel", "N", "capacity_best_bits", "bits_per_episode", "rate_vs_capacity")


@dataclass(frozen=True)
class Part:
    """A section: a figure of this name if it was drawn, a note on how to read it, sentences, and a table."""

    name: str
    title: str
    sentences: list[str]
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
        command=commands[-1],
        commands="\n".join(commands),
        lede=describe_scope(summary),
        notices=list_notices(summary),
        verdicts=[asdict(verdict) for verdict in summary.verdicts],
        hypotheses=HYPOTHESES,
        parts=_list_parts(summary, figures),
        drawn=set(figures),
        facts=list_facts(summary),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n", "utf-8")


def _list_parts(summary: Summary, figures: dict[str, Figure]) -> list[Part]:
    ledger = describe_ledger(summary.ledger, main_N(summary)) if "ledger" in figures else []
    published, scaling = compare_with_published(summary.estimates), tabulate_scaling(summary.scaling)
    parts = [
        Part("ledger", "Where the bits of an episode go", ledger, note=LEDGER_NOTE),
        Part(
            "episodes",
            "Episodes to memorize",
            published,
            _tabulate_lora(figures["episodes"], _EPISODE_COLUMNS),
        ),
        Part("rate", "Bits per episode", [], _tabulate_lora(figures["rate"], _RATE_COLUMNS)),
        Part("scaling", "An exponent or an overhead?", [], scaling, note=SCALING),
        Part("learning", "Learning curves", []),
        Part("maps", "Rank and learning rate", []),
        Part("leak", "Does the secret leak?", describe_leaks(summary.leaks) if "leak" in figures else []),
        Part("prior", "Is the prior uniform?", _describe_prior(summary.prior)),
    ]
    return [part for part in parts if part.sentences or part.table or part.name in figures]


def _tabulate_lora(figure: Figure, columns: tuple[str, ...]) -> Table:
    return tabulate(figure.data[(figure.data["agent"] == "lora").to_numpy()], columns)


def _describe_prior(prior: pd.DataFrame) -> list[str]:
    known = prior[prior["prior_kl_bits"].notna().to_numpy()]
    if known.empty:
        return []
    worst = known.sort_values("prior_kl_bits").iloc[-1]
    return [
        f"Over {len(known)} prompts the largest divergence from a uniform prior is {worst['prior_kl_bits']:.2g} bit "
        f"({worst['env_type']}, N = {worst['N']}); the smallest mass on answers in range is "
        f"{100 * known['prior_well_formed'].min():.4g} %."
    ]
