"""live.html: cells by state, curves in bits, failures and time left, while a sweep runs."""

import re
import urllib.request
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from simulated_sweep import simulate_sweep

from memrl.config import TrainConfig
from memrl.sweep.live_page import LivePage, serve_folder
from memrl.sweep.stretch import Stretch
from memrl.tables.rows import failed_row


@pytest.fixture(scope="module")
def stretch() -> Stretch:
    cells, curves = simulate_sweep(Ns=(16,), processes=("sft", "binary"), ranks=(1,), rates=(3e-3,), num_seeds=4)
    return Stretch([*cells.to_pylist(), failed_row(TrainConfig(), "RuntimeError: <b>loss</b>\nmore")], curves)


def test_the_page_shows_counts_curves_and_failures_and_loads_itself_anew(tmp_path, stretch):
    page = LivePage(tmp_path, "tiny", "python sweeps/launch.py grid=tiny")
    page.take(stretch)
    page.tick("tiny  9/20 cells  0:12 min left", Counter(memorized=8, failed=1), 20, 2)
    text = (tmp_path / "live.html").read_text("utf-8")
    assert '<meta http-equiv="refresh" content="3">' in text
    assert "0:12 min left" in text
    assert "20 cells: 2 finished before, 8 memorized, 1 failed, 9 to go" in text
    assert "1 × binary, N = 64: RuntimeError: &lt;b&gt;loss&lt;/b&gt;</li>" in text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert [caption.partition(":")[0] for caption in captions] == ["SFT, N = 16", "binary, N = 16"]
    assert all("4 runs" in caption and "of 4.00 bits" in caption for caption in captions)
    assert "src=" not in text
    assert "url(" not in text


def test_curves_are_medians_of_what_runs_had_absorbed_at_the_same_episodes(tmp_path, stretch):
    page = LivePage(tmp_path, "tiny", "")
    page.take(stretch)
    page.tick("", Counter(), 1, 0)
    text = (tmp_path / "live.html").read_text("utf-8")
    lines = [
        np.array([float(point.split(",")[1]) for point in points.split()])
        for points in re.findall(r'<polyline points="(.*?)"', text)
    ]
    assert len(lines) == 2
    for heights in lines:
        assert (np.diff(heights) <= 0.1).all()  # downwards on the screen is up in bits
        assert heights[0] - heights[-1] > 60


def test_the_last_page_stands_still(tmp_path):
    page = LivePage(tmp_path, "tiny", "")
    page.write("done", Counter(), 1, 1, has_ended=True)
    page.tick("not this", Counter(), 1, 1)
    text = (tmp_path / "live.html").read_text("utf-8")
    assert "refresh" not in text
    assert "not this" not in text
    assert "href='report.html'" in text


def test_tables_elsewhere_and_folders_that_are_gone_are_no_error(tmp_path):
    LivePage(None, "tiny", "").tick("", Counter(), 1, 0)
    LivePage(tmp_path / "gone", "tiny", "").tick("", Counter(), 1, 0)
    assert list(tmp_path.iterdir()) == []


def test_it_is_served_on_this_machine_alone(tmp_path):
    LivePage(tmp_path, "tiny", "").tick("told", Counter(), 1, 0)
    address = serve_folder(tmp_path)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert b"told" in answer.read()


def test_a_run_that_ended_keeps_what_it_knew(tmp_path):
    curves = pa.table({"cell_id": ["a"] * 2, "episodes": [0, 8], "absorbed_bits": [0.0, 5.0]})
    row = failed_row(TrainConfig(), "") | {"cell_id": "a", "status": "memorized", "channel": "binary"}
    page = LivePage(tmp_path, "tiny", "")
    page.take(Stretch([row], curves))
    page.tick("", Counter(), 1, 0)
    assert "1 runs, 5.00 of 6.00 bits" in (tmp_path / "live.html").read_text("utf-8")
