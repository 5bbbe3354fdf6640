"""When the code of a reward function of one's own counts as another, and what follows."""

import copy
import sys

import pytest

from memrl.config import TrainConfig
from memrl.reward_code import name_code

SOURCE = '''"""Rewards."""
import numpy as np
from mine import helpers


def pay(guess, secret, N):
    """Pays."""
    return helpers.scale * (guess == secret)  # a comment
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `mine` with a reward that uses a module beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('this package was run')\n")
    (folder / "rewards.py").write_text(SOURCE)
    (folder / "helpers.py").write_text("scale = 1.0\n")
    (folder / "unrelated.py").write_text("scale = 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def code() -> str | None:
    return name_code("mine.rewards:pay")


def test_comments_docstrings_and_blank_lines_are_no_code(package):
    before = code()
    text = SOURCE.replace("# a comment", "# another, longer").replace('"""Pays."""', '"""Pays well."""\n\n')
    (package / "rewards.py").write_text(text.replace('"""Rewards."""', ""))
    assert before is not None
    assert code() == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("rewards.py", "guess == secret", "guess >= secret"),
        ("helpers.py", "1.0", "0.5"),
        ("__init__.py", "this", "that"),
    ],
)
def test_code_of_the_module_and_of_what_it_imports_counts(package, file, old, new):
    before, before_id = code(), TrainConfig(reward_type="mine.rewards:pay").cell_id
    path = package / file
    path.write_text(path.read_text().replace(old, new) + "\n")
    assert code() not in (before, None)
    assert TrainConfig(reward_type="mine.rewards:pay").cell_id != before_id


def test_what_is_not_imported_does_not_count(package):
    before = code()
    (package / "unrelated.py").write_text("scale = 3.0\nmore = 4\n")
    assert code() == before


def test_relative_imports_and_imports_in_a_circle_are_followed(package):
    (package / "rewards.py").write_text(SOURCE.replace("from mine import helpers", "from .helpers import scale"))
    (package / "helpers.py").write_text("from . import rewards\nscale = 1.0\n")
    before = code()
    (package / "helpers.py").write_text("from . import rewards\nscale = 0.25\n")
    assert code() not in (before, None)


def test_nothing_is_run_to_name_code(package):
    assert code() is not None
    assert "mine" not in sys.modules


def test_a_single_file_and_a_folder_without_init_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alone.py").write_text("def f(guess, secret, N): return guess == secret\n")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "rewards.py").write_text("def f(guess, secret, N): return guess == secret\n")
    assert None not in (name_code("alone:f"), name_code("loose.rewards:f"))
    assert name_code("alone:f") != name_code("loose.rewards:f")


@pytest.mark.parametrize("address", ["nowhere:f", "nowhere.at.all:f", "loose:f", "sys:f"])
def test_what_is_not_there_has_no_code(address):
    assert name_code(address) is None


def test_a_file_that_is_no_python_counts_by_its_bytes(package):
    (package / "rewards.py").write_text("def f(:\n")
    before = code()
    (package / "rewards.py").write_text("def f(:  \n")
    assert code() not in (before, None)


def test_the_code_travels_with_the_cell_and_is_part_of_its_channel(package):
    cell = TrainConfig(reward_type="mine.rewards:pay")
    assert cell.reward_code == code()
    assert cell.channel_name == f"mine.rewards:pay@{code()}"
    (package / "helpers.py").write_text("scale = 7.0\n")
    assert copy.deepcopy(cell).cell_id == cell.cell_id


def test_a_cell_of_other_code_is_refused_where_the_code_is_there(package):
    with pytest.raises(ValueError, match=f"reward_code must be {code()}, which is the code of mine.rewards:pay now"):
        TrainConfig(reward_type="mine.rewards:pay", reward_code="0123abcd")
    assert TrainConfig(reward_type="mine.rewards:pay", reward_code=code()) == TrainConfig(
        reward_type="mine.rewards:pay"
    )


def test_channels_of_memrl_have_no_code_and_keep_their_names():
    assert TrainConfig().reward_code is None
    assert TrainConfig().cell_id == "24ccb5d4e3b80fd9"
    with pytest.raises(ValueError, match="reward_code must be left out"):
        TrainConfig(reward_code="0123abcd")
