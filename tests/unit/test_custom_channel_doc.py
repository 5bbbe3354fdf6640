"""docs/custom_channel.md does what it says: its file is written, its sessions are run, its rules are kept."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from memrl.config import TrainConfig
from memrl.tables.rows import agent_row
from memrl.task.reward import build_channel
from memrl.theory.agents import play_agents
from memrl.theory.capacity import identifiability_warning

DOC = Path(__file__).parents[2] / "docs" / "custom_channel.md"


def code_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def channels_on_path(tmp_path, monkeypatch):
    (source,) = code_blocks("python")
    name = re.match(r"# (\w+\.py)\n", source).group(1)
    (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return source


def test_the_example_is_ten_lines(channels_on_path):
    assert len([line for line in channels_on_path.splitlines() if line.strip()]) <= 10


def test_the_sessions_print_what_the_page_shows(channels_on_path):
    session = doctest.DocTestParser().get_doctest("".join(code_blocks("pycon")), {}, DOC.name, str(DOC), 0)
    assert len(session.examples) > 10
    report = []
    result = doctest.DocTestRunner().run(session, out=report.append)
    assert result.failed == 0, "".join(report)


def test_the_channel_gets_rows_of_agents_like_any_other(channels_on_path):
    cells = [TrainConfig(N=100, seed=seed, reward_type="my_channels:digits_right", n_steps=200) for seed in range(3)]
    rows = [agent_row(run) for run in play_agents(cells, learning_rates=[16.0])]
    assert {row["agent"] for row in rows} == {"greedy", "tabular_pg"}
    assert {row["channel"] for row in rows} == {cells[0].channel_name}
    assert all(0 < row["e90"] < 100 for row in rows if row["agent"] == "greedy")


def test_the_function_itself(channels_on_path):
    channel = build_channel(TrainConfig(N=100, reward_type="my_channels:digits_right"))
    told = channel.rewards(np.arange(100)[:, None], np.arange(100))[..., 0]
    expected = [
        [sum(a == b for a, b in zip(f"{g:02}", f"{s:02}", strict=True)) for s in range(100)] for g in range(100)
    ]
    np.testing.assert_array_equal(told, expected)


def test_a_malformed_reward_as_high_as_the_secrets_is_warned_of(channels_on_path):
    config = TrainConfig(N=100, reward_type="my_channels:digits_right", malformed_reward=2.0)
    assert "malformed_reward=2.0" in (identifiability_warning(build_channel(config)) or "")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("my_channels:digits_rihgt", "reward_type must name an importable function"),
        ("no_such_module:f", "reward_type must name an importable function"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(channels_on_path, address, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_channel(TrainConfig(N=100, reward_type=address))
