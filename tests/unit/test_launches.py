"""sweep.json: what a launch notes beside its tables."""

import json

import pytest
from simulated_sweep import SMALL_GRID, write_sweep

from memrl.analysis.sentences import list_facts
from memrl.analysis.summary import summarize_sweep
from memrl.tables.launches import FILE, LaunchNote, read_launches
from memrl.tables.publish import publish_tables
from memrl.tables.store import TableStore


@pytest.fixture
def simulated(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("sweep"))
    write_sweep(folder, **(SMALL_GRID | {"processes": ("sft",)}))
    return folder


def test_a_launch_is_noted_at_its_begin_and_completed_at_its_end(tmp_path):
    store = TableStore(str(tmp_path))
    first = LaunchNote(store, "tiny", "python sweeps/launch.py grid=tiny", num_cells=7)
    (begun,) = read_launches(store)
    assert begun["ended"] is None
    first.end()
    LaunchNote(store, "tiny", "python sweeps/launch.py grid=tiny seeds=2", num_cells=0).end()
    one, two = read_launches(store)
    assert (one["cells"], two["command"]) == (7, "python sweeps/launch.py grid=tiny seeds=2")
    assert one["seconds"] >= 0
    assert one["begun"] <= one["ended"] <= two["begun"]
    assert one["machine"]["cores"] >= 1
    assert "torch" in one["versions"]
    whole = json.loads((tmp_path / FILE).read_text("utf-8"))
    assert (whole["grid"], whole["schema_version"]) == ("tiny", 2)


def test_a_file_that_is_none_of_ours_is_no_launch(tmp_path):
    store = TableStore(str(tmp_path))
    for text in ("", "[]", "{", '{"launches": 3}', '{"launches": ["x"]}'):
        (tmp_path / FILE).write_text(text)
        assert read_launches(store) == []


def test_the_page_tells_the_machine_and_a_published_sweep_keeps_the_note(simulated, tmp_path):
    store = TableStore(simulated)
    LaunchNote(store, "tiny", "python sweeps/launch.py grid=tiny", num_cells=7).end()
    publish_tables(store, str(tmp_path))
    assert read_launches(TableStore(str(tmp_path))) == read_launches(store)
    facts = dict(list_facts(summarize_sweep(str(tmp_path))))
    assert facts["launches"] == "1, 0 s in all"
    assert "cores" in facts["machine"]
