"""The program `memrl`: each command by one word."""

import sys

import pytest

from memrl.__main__ import run
from memrl.cli import BAD_INPUT, repeat_command


def test_without_a_word_it_tells_the_words(capsys):
    assert run([]) == BAD_INPUT
    assert run(["--help"]) == 0
    told = capsys.readouterr()
    assert told.out == told.err
    for word in ("sweep", "report", "train", "preview", "warmup"):
        assert f"\n  {word} " in told.out


def test_a_word_that_is_none_is_one_line(capsys):
    assert run(["swep"]) == BAD_INPUT
    assert capsys.readouterr().err == "error: unknown command 'swep'; did you mean 'sweep'?\n"


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["sweep"], "usage: python sweeps/launch.py grid=NAME"),
        (["report"], "usage: python -m memrl.report grid=NAME"),
        (["train"], "Trains one policy by reinforcement learning"),
        (["train", "algorithm=sft"], "Trains one policy on its secret by cross-entropy"),
        (["preview"], "python -m memrl.preview_env"),
        (["warmup"], "python -m memrl.warmup_train"),
    ],
)
def test_each_word_is_a_command(words, usage, capsys):
    with pytest.raises(SystemExit) as ended:
        run([*words, "--help"])
    assert ended.value.code == 0
    assert usage in capsys.readouterr().out


def test_a_dry_run_reads_the_grids_of_the_package_or_the_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["sweep", "grid=smoke", "dry_run=True"]) == 0
    assert capsys.readouterr().out.startswith("smoke: 56 cells, 0 of them finished\n")


def test_the_command_to_go_on_with_is_called_as_it_was(monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/memrl", "sweep"])
    assert repeat_command("sweeps/launch.py", ["grid=smoke"]) == "memrl sweep grid=smoke"
    assert repeat_command("-m memrl.report", ["grid=smoke"]) == "memrl report grid=smoke"
