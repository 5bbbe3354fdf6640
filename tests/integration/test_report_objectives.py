"""The report of a sweep with several objectives: figures, tables and verdicts tell them apart."""

import re
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from simulated_sweep import simulate_sweep, vary_curves, vary_objective

from memrl.analysis.charts import draw_figure
from memrl.analysis.drawing import PAGE
from memrl.analysis.figure_data import collect_figures
from memrl.analysis.page import write_report
from memrl.analysis.sentences import answer_question
from memrl.analysis.summary import summarize_sweep
from memrl.report import main
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

GRID: dict[str, Any] = {"Ns": (16, 64), "ranks": (8,), "rates": (1e-3, 3e-3, 1e-2), "num_seeds": 8, "max_episodes": 600}
REJECTION = {"advantage": "rejection", "group_size": 4}
DISTILLED = {
    **{"algorithm": "distill", "explore": "policy", "channel": "per_bit-distill-policy"},
    **dict.fromkeys(("advantage", "loss", "credit", "group_size")),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    cells, curves = simulate_sweep(processes=("sft", "binary", "per_bit"), **GRID)
    per_bit, of_per_bit = simulate_sweep(processes=("per_bit",), **GRID)
    others = [(0.4, REJECTION), (0.7, REJECTION | {"group_size": 8}), (0.1, DISTILLED)]
    store = TableStore(str(tmp_path_factory.mktemp("sweep")))
    store.create()
    store.append(EPISODES_TO_MEMORIZE, pa.concat_tables([cells, *(vary_objective(per_bit, x, **y) for x, y in others)]))
    store.append(CURVES, pa.concat_tables([curves, *(vary_curves(of_per_bit, x, **y) for x, y in others)]))
    return store.address


@pytest.fixture(scope="module")
def summary(sweep):
    return summarize_sweep(sweep)


def test_every_figure_draws_each_objective_and_says_which(summary):
    figures = collect_figures(summary)
    assert {"rate", "ledger", "learning", "episodes", "groups"} <= set(figures)
    svg = draw_figure(figures["rate"])[0].svgs[PAGE]
    for objective in ("usual objective", "chosen objective", "distilled"):
        assert f"<title>per bit, N = 16: {objective}, " in svg
        assert f">{objective}</text>" in svg
    ledger = draw_figure(figures["ledger"])[0].svgs[PAGE]
    assert set(re.findall(r">(usual|chosen|distilled)<", ledger)) == {"usual", "chosen", "distilled"}
    for name in ("learning", "episodes", "groups", "maps"):
        assert draw_figure(figures[name])
    assert set(figures["groups"].data["group_size"]) == {4, 8}


def test_verdicts_are_given_for_the_usual_objective_and_for_the_chosen(summary):
    names = [verdict.name for verdict in summary.verdicts]
    assert names == [f"{name}, {whose} objective" for whose in ("usual", "chosen") for name in ("H1a", "H1b", "H3")]
    usual, chosen = (
        next(v for v in summary.verdicts if v.name == f"H3, {whose} objective") for whose in ("usual", "chosen")
    )
    assert chosen.value < 0.6 * usual.value


def test_the_answer_is_that_of_the_chosen_objective_and_says_what_the_usual_one_taught(summary):
    _, answers = answer_question(summary)
    words = next(answer.words for answer in answers if "“per bit”" in answer.words)
    assert "under the objective that other secrets chose: rejection (at most" in words
    assert re.search(r"the usual objective taught 0\.\d+\)$", words)
    estimates = summary.estimates.copy()
    usual = (estimates["objective"] == "usual") & (estimates["channel"] == "per bit")
    estimates.loc[usual.to_numpy(), "bits_per_episode"] = 1.0
    _, answers = answer_question(replace(summary, estimates=estimates))
    words = next(answer.words for answer in answers if "“per bit”" in answer.words)
    assert words.endswith("on these secrets the usual objective taught more, 1)")


def test_the_answer_is_of_the_largest_N_that_most_channels_have(summary):
    few = summary.estimates.assign(N=summary.estimates["N"] * 64)
    few = few[((few["channel"] == "SFT") & (few["N"] == 64 * 64)).to_numpy()]
    place, answers = answer_question(replace(summary, estimates=pd.concat([summary.estimates, few])))
    assert (place, len(answers)) == ("N = 64,", 3)


def test_page_and_findings_list_what_each_objective_kept_and_lost(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["grid=several", f"results={sweep}", "findings=findings.md"]) == 0
    printed = capsys.readouterr().out
    assert "H3, chosen objective" in printed
    findings = (tmp_path / "findings.md").read_text("utf-8")
    assert "| channel | N | capacity | kept by the usual objective | by the chosen one | by the posterior |" in findings
    assert re.search(r"^\| per bit \| usual \| group-centered \| 16 \|", findings, re.M)
    page = write_report(sweep, grid="several").read_text("utf-8")
    assert 'id="kept"' in page
    assert 'id="edges"' in page
    assert "lost it again" in page


def test_the_share_that_got_there_is_drawn_against_the_interference_of_its_base(tmp_path):
    fields: dict[str, Any] = GRID | {"Ns": (16,)}
    cells, curves = simulate_sweep(processes=("per_bit",), **fields)
    bases = [{"model": "apart", "interference": 0.1}, {"model": "alike", "interference": 0.8, "e50_censored": True}]
    store = TableStore(str(tmp_path))
    store.create()
    for base in bases:
        for fields in (base, base | REJECTION | {"e50_censored": False}):
            store.append(EPISODES_TO_MEMORIZE, vary_objective(cells, 1.0, **fields))
            store.append(CURVES, vary_curves(curves, 1.0, **fields))
    figure = collect_figures(summarize_sweep(store.address))["interference"]
    shares = {(row["base"], row["objective"]): row["share"] for row in figure.data.to_dict("records")}
    assert shares == {
        **{("apart", "usual"): 1.0, ("alike", "usual"): 0.0},
        **{("apart", "chosen"): 1.0, ("alike", "chosen"): 1.0},
    }
    (drawing,) = draw_figure(figure)
    assert (
        "<title>per bit, N = 16: usual objective, interference 0.80: 0 of 8 runs reached 1/2</title>"
        in drawing.svgs[PAGE]
    )
