"""The report of a simulated sweep: what stands on the page, in its files, and in the findings."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from simulated_sweep import SMALL_GRID, write_sweep

from memrl.analysis.charts import chart_agents, chart_episodes, chart_rate, draw_figure
from memrl.analysis.drawing import PAGE, render_svg
from memrl.analysis.estimate import count_collapses
from memrl.analysis.figure_data import collapse_figure, collect_figures
from memrl.analysis.page import write_report
from memrl.analysis.sentences import describe_collapse
from memrl.analysis.summary import summarize_sweep
from memrl.report import ReportRequest, find_tables, main
from memrl.tables.schema import SCHEMAS
from memrl.tables.store import TableStore

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("rate", "ledger", "learning", "episodes", "agents", "maps")
ONE_N = ("ledger", "learning", "maps")
STEMS = [f"{name}{end}" for name in FIGURES for end in (("-N16", "-N64") if name in ONE_N else ("",))]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(str(folder), **SMALL_GRID)
    return folder


@pytest.fixture(scope="module")
def summary(sweep):
    return summarize_sweep(str(sweep))


@pytest.fixture(scope="module")
def report(sweep):
    path = write_report(str(sweep), grid="tiny", num_planned=500)
    return path, path.read_text("utf-8")


def read_script(page, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)[1])


def run_command(*words, cwd=ROOT):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "memrl.report", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_page_needs_nothing_from_outside_and_links_to_no_file(report):
    _, page = report
    references = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert references == ["data:,"]
    assert "@import" not in page
    assert "url(" not in page


def test_page_opens_with_the_answer_tells_the_story_and_then_shows_every_figure(report, summary):
    _, page = report
    story = ["answer", "figure-rate", "story", "figure-ledger", "figure-learning", "collapse", "verdicts"]
    sections = [*story, "figure-episodes", "reference", "figure-agents", "figure-maps", "table", "failed", "reproduce"]
    places = [page.index(f'id="{name}"') for name in sections]
    assert places == sorted(places)
    assert re.findall(r'class="outcome (\w+)">', page) == [
        v.outcome for v in summarize_sweep(str(report[0].parent)).verdicts
    ]
    assert re.findall(r'class="drawing" .*?data-stem="(.*?)"', page) == sorted(
        STEMS, key=lambda stem: (FIGURES.index(stem.partition("-")[0]), "-N16" in stem)
    )


def test_every_figure_is_there_as_svg_and_pdf_at_two_widths_and_as_png_and_csv(report):
    folder = report[0].parent / "figures"
    drawn = {f"{stem}{width}.{kind}" for stem in STEMS for width in ("", "-column") for kind in ("svg", "pdf")}
    assert {path.name for path in folder.iterdir()} == (
        drawn | {f"{stem}.png" for stem in STEMS} | {f"{name}.csv" for name in FIGURES}
    )
    for stem in STEMS:
        assert (folder / f"{stem}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        for width, inches in (("", 6.9), ("-column", 3.3)):
            svg = (folder / f"{stem}{width}.svg").read_text("utf-8")
            root = ElementTree.fromstring(svg)
            assert root.attrib["width"] == f"{inches}in"
            assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 5
            pdf = (folder / f"{stem}{width}.pdf").read_bytes()
            (box,) = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ", pdf)
            assert float(box) == pytest.approx(72 * inches, abs=0.1)


def test_page_file_and_csv_show_the_same_numbers(summary, report):
    path, page = report
    rows = collect_figures(summary)["rate"].data
    for said in rows["said"]:
        assert f"<title>{said}</title>" in page
    assert (path.parent / "figures" / "rate.svg").read_text("utf-8") in page
    written = pd.read_csv(path.parent / "figures" / "rate.csv")
    np.testing.assert_allclose(written["bits_per_episode"], rows["bits_per_episode"], rtol=1e-5)


def test_runs_that_reached_one_half_and_lost_it_are_counted_and_drawn(summary):
    cells = pd.DataFrame(
        {
            "channel": ["binary"] * 4 + ["SFT"],
            "learning_rate": [0.01, 0.01, 0.01, 0.001, 0.01],
            "e50_censored": [False, False, True, False, False],
            "absorbed_bits": [-9.0, 4.9, -9.0, 3.1, 3.9],
            "signal_bits": [4.0, 4.0, 4.0, 4.0, 4.0],
        }
    )
    counts = count_collapses(cells)
    assert counts[["num_reached", "num_lost"]].to_numpy().tolist() == [[1, 0], [1, 0], [2, 1]]
    assert describe_collapse(counts) == [
        "Of 4 runs that gave the secret probability 1/2, 1 ended below it, 0 of 1 at 0.001 (the smallest learning "
        "rate) and 1 of 3 at 0.01 (the largest); most often with “binary” at 0.01, 1 of 2."
    ]
    figure = collapse_figure(replace(summary, collapse=counts))
    (drawing,) = draw_figure(figure)
    assert "<title>binary, learning rate 0.01: 1 of 2 runs that got to 1/2</title>" in drawing.svgs[PAGE]
    assert collapse_figure(summary).data.empty


def test_a_median_that_was_not_reached_has_an_arrow_and_no_dot(summary):
    data = collect_figures(summary)["episodes"].data
    lost = ((data["channel"] == "binary") & (data["N"] == 64) & (data["agent"] == "lora")).to_numpy()
    stuck = data.assign(e50=data["e50"].where(~lost, np.inf), e50_upper=data["e50_upper"].where(~lost, np.inf))
    assert sum(lost) == 1
    mark = r'd="(M[^"]*)"[^>]*><title>binary, N = 64: LoRA policy'
    for chart in (chart_episodes, chart_agents):
        (dot,), (arrow,) = (re.findall(mark, render_svg(chart(rows, PAGE), PAGE)) for rows in (data, stuck))
        assert "L" not in dot
        assert arrow.count("L") == 2


def test_several_models_are_drawn_apart_and_named(sweep, tmp_path):
    source, target = TableStore(str(sweep)), TableStore(str(tmp_path))
    target.create()
    for table in SCHEMAS:
        rows = source.read(table)
        target.append(table, rows)
        if table == "agents":
            continue
        other = rows.to_pandas().assign(cell_id=lambda frame: frame["cell_id"].str[:-1] + "z")
        if table == "episodes_to_memorize":
            other = other.assign(model="org/other")
        target.append(table, pa.Table.from_pandas(other, schema=rows.schema, preserve_index=False))
    page = write_report(str(tmp_path)).read_text("utf-8")
    stems = re.findall(r'class="drawing" .*?data-stem="(.*?)"', page)
    assert {"rate-embedded", "rate-org-other", "learning-embedded-N64", "learning-org-other-N16"} <= set(stems)
    assert "At N = 64, with the model embedded, one episode taught" in page
    assert '<th scope="col" class="text">model</th>' in page
    assert (tmp_path / "figures" / "rate-org-other-column.pdf").exists()


def test_open_intervals_are_arrows(summary):
    chart = chart_rate(collect_figures(summary)["rate"].data.assign(bits_per_episode_lower=0.0), PAGE).to_dict()
    shapes = [layer["mark"].get("shape") for layer in chart["layer"]]
    assert shapes[1:3] == ["triangle-left", "triangle-right"]
    (data,) = chart["datasets"].values()
    assert all(row["opens_below"] and row["start"] > 0 for row in data)


def test_table_holds_every_setting(sweep, report):
    settings = read_script(report[1], "settings-data")
    cells = pd.concat([pd.read_parquet(sweep / table) for table in ("episodes_to_memorize", "agents")])
    measured = cells[cells["absorbed_bits"].notna()]
    keys = ["agent", "channel", "N", "learning_rate", "lora_rank"]
    assert len(settings["rows"]) == len(measured.drop_duplicates(keys))
    heads = re.findall(r"<button type=\"button\">(.*?)</button></th>", report[1])
    runs = heads.index("runs")
    assert sum(row[runs][1] for row in settings["rows"]) == len(measured)


def test_half_finished_sweep_says_so_and_failed_cells_are_listed(report):
    _, page = report
    assert "This sweep is not finished: 385 of 500 cells have a row." in page
    assert re.findall(r"H\d\w? (\w+), provisional", page)
    assert "1 cell failed and is listed below" in page
    assert "RuntimeError: &lt;b&gt;loss&lt;/b&gt; is not finite" in page
    assert "<b>loss</b>" not in page


def test_published_numbers_stand_beside_those_at_the_same_N(tmp_path):
    write_sweep(str(tmp_path), **(SMALL_GRID | {"Ns": (10, 100), "processes": ("binary",)}))
    page = write_report(str(tmp_path), grid="tiny").read_text("utf-8")
    assert "<title>binary, N = 100: published, 129</title>" in page
    assert "bledden.github.io" in page
    assert "N = 500: published" not in page


def test_page_tells_how_to_reproduce_it(report):
    _, page = report
    for text in (
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        "uv run python sweeps/launch.py grid=tiny",
        "uv run python -m memrl.report grid=tiny",
        "2026-01-01 00:00 UTC",
        "0123456789abcdef0123456789abcdef01234567",
        "torch 2.13.0",
        "<dd>0–7</dd>",
    ):
        assert text in page


def test_same_tables_give_the_same_page(sweep, report, tmp_path):
    again = write_report(str(sweep), grid="tiny", num_planned=500, folder=tmp_path)
    assert again.read_text("utf-8") == report[1]
    assert (tmp_path / "figures" / "rate.svg").read_bytes() == (report[0].parent / "figures" / "rate.svg").read_bytes()


def test_one_cell_is_enough(sweep, tmp_path):
    source, target = TableStore(str(sweep)), TableStore(str(tmp_path))
    target.create()
    cells = source.read("episodes_to_memorize")
    binary = pc.and_(pc.equal(cells["channel"], "binary"), pc.equal(cells["agent"], "lora"))
    target.append("episodes_to_memorize", cells.filter(binary).slice(0, 1))
    target.append("curves", source.read("curves"))
    page = write_report(str(tmp_path)).read_text("utf-8")
    assert re.findall(r'class="outcome (\w+)">(.*?)<', page) == [
        ("undecided", "? H1a undecided"),
        ("undecided", "? H1b undecided"),
    ]
    assert "1 policy was trained to memorize a secret, over 1 channel, N = 64, with 1 secret drawn" in page


def test_no_curves_leave_out_the_figures_that_need_them(sweep, tmp_path):
    for table in ("episodes_to_memorize", "agents"):
        shutil.copytree(sweep / table, tmp_path / table)
    page = write_report(str(tmp_path)).read_text("utf-8")
    assert re.findall(r'<figure id="figure-(\w+)"', page) == ["rate", "episodes", "agents", "maps"]


def test_command_writes_report_and_findings(sweep, summary, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["grid=tiny", f"results={sweep}", "findings=findings.md"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^(H\w+) ", printed, re.M) == ["H1a", "H1b", "H3", "H4", "H5"]
    assert f"report: {sweep}/report.html" in printed
    findings = Path("findings.md").read_text("utf-8")
    for verdict in summary.verdicts:
        assert f"| **{verdict.outcome}** | {verdict.sentence} |" in findings
    assert re.search(r"^- \*\*[\d.]+ bits\*\* by SFT", findings, re.M)
    for link in re.findall(r"\]\(([^)]+)\)", findings):
        assert (tmp_path / link).exists(), link


def test_command_reads_the_reference_until_there_are_tables_of_ones_own(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reference = Path("sweeps", "reference", "tiny")
    shutil.copytree(sweep, reference)
    assert find_tables(ReportRequest(grid="tiny")) == str(reference)
    assert capsys.readouterr().out == f"results/tiny has no tables yet; this is the reference, {reference}\n"
    TableStore("results/tiny").create()
    assert find_tables(ReportRequest(grid="tiny")) == "results/tiny"
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="got none in elsewhere"):
        find_tables(ReportRequest(grid="tiny", results="elsewhere"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=bitrat"], "error: unknown grid 'bitrat'; did you mean 'bitrate'?\n"),
        (["grid=x", "results=/nowhere/at/all"], "error: results must hold the tables of a sweep, got none in"),
        (["grid="], "error: grid must name a sweep"),
        (["grd=bitrate"], "error: unknown field 'grd'; did you mean 'grid'?\n"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message):
    done = run_command(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_tables_without_a_finished_cell_are_refused(tmp_path):
    TableStore(str(tmp_path)).create()
    done = run_command("grid=empty", f"results={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == f"error: results must hold at least one finished cell, got none at {tmp_path}\n"


def test_a_damaged_part_is_one_line_that_names_it_and_stays(tmp_path):
    TableStore(str(tmp_path)).create()
    (part,) = (tmp_path / "episodes_to_memorize").glob("*.parquet")
    part.write_bytes(b"PAR1")
    done = run_command("grid=empty", f"results={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {part} must be a whole part of its table, got ")
    assert done.stderr.count("\n") == 1
    assert part.exists()


def test_a_page_that_can_not_be_written_is_one_line(sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / "sweep", ignore=shutil.ignore_patterns("figures"))
    (tmp_path / "sweep" / "figures").touch()
    done = run_command("grid=tiny", f"results={tmp_path / 'sweep'}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"error: the report must be written, got \S+ \(.+\)", line)


def test_cells_that_all_failed_are_refused_though_the_agents_played(sweep, tmp_path):
    source, target = TableStore(str(sweep)), TableStore(str(tmp_path))
    target.create()
    cells = source.read("episodes_to_memorize")
    target.append("episodes_to_memorize", cells.filter(pc.equal(cells["status"], "failed")))
    target.append("agents", source.read("agents"))
    with pytest.raises(ValueError, match="results must hold a cell that measured something, got 1 failed at"):
        summarize_sweep(str(tmp_path))


def test_help_and_bad_input_import_nothing_heavy():
    program = (
        "import sys; from memrl.report import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code)\n"
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'altair', 'vl_convert', 'torch', 'ray') if m in sys.modules])"
    )
    for words, code in ((["--help"], "0"), (["grid="], "2")):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.splitlines()[-2:] == [code, "[]"]


def test_tutorial_runs(sweep, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "docs" / "tutorial.py"), str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "385 cells" in done.stdout
    assert (tmp_path / "tutorial.png").stat().st_size > 10_000


def test_scale_benchmark_runs_at_a_small_size(tmp_path):
    output = tmp_path / "numbers.json"
    words = ["num_cells=800", "num_rates=1", "rows_per_cell=20", f"output={output}"]
    command = [sys.executable, str(ROOT / "benchmarks" / "report_scale.py"), *words]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    numbers = json.loads(output.read_text())
    assert (numbers["num_cells"], numbers["num_rows"]) == (768, 15_360)
    assert 0 < numbers["peak_gib"] < 4
