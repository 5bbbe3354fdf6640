"""docs/episodes.md says what happens: every row of its tables is played."""

import math
import re
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest

from memrl.cli import build, split_words
from memrl.config import Advantage, Credit, EnvType, TrainConfig
from memrl.task.advantage import assign_credit, group_advantages
from memrl.task.env import step_rewards
from memrl.task.parse import collect_outcomes, parse_answer
from memrl.task.prompt import answer_steps, prompt_text
from memrl.task.reward import build_channel
from memrl.task.secret import num_bits
from memrl.task.trie import build_trie

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "episodes.md").read_text()
CHARACTERS = "0123456789x⏹"


def encode(text):
    return [CHARACTERS.index(character) for character in text]


def read_rows(section):
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def read_numbers(cell):
    return [math.nan if word == "·" else float(word) for word in cell.split()]


def find_section(heading):
    return TEXT.split(f"\n## {heading}", 1)[1].split("\n## ")[0]


def play(config, written):
    """The parsed answer and its rewards; the text must be an episode, to its last character."""
    stop = "⏹" if config.env_type == "single_step" else ""
    answers = [[encode(s + stop) for s in answer_steps(g, config.N, config.env_type)] for g in range(config.N)]
    text = "".join(re.findall(r"`([^`]*)`", written))
    parsed = parse_answer(build_trie(answers), encode(text))
    assert parsed is not None, f"{text} goes on"
    assert parsed.num_tokens == len(text), f"{text} ends before its end"
    num_env_steps = 1 if config.env_type == "single_step" else num_bits(config.N)
    (rewards,) = step_rewards(build_channel(config), collect_outcomes([parsed]), config.secret, num_env_steps)
    return parsed, rewards


SECTIONS = re.findall(r"\n### `([^`]*)`\n(.*?)(?=\n##)", TEXT, re.S)
WORKED = [(words, *row) for words, section in SECTIONS for row in read_rows(section)]


@pytest.mark.parametrize(("words", "written", "guess", "rewards"), WORKED)
def test_worked_sequences_are_true(words, written, guess, rewards):
    config = build(TrainConfig, split_words(words.split()))
    parsed, paid = play(config, written)
    assert (str(parsed.guess) if parsed.well_formed else "malformed") == guess
    np.testing.assert_allclose(paid, read_numbers(rewards), atol=5e-4)


def test_there_are_worked_sequences_of_every_kind():
    assert len(WORKED) >= 30
    assert {words.split()[0] for words, *_ in WORKED} == {"env_type=single_step", "env_type=multi_step"}


def test_prompts_are_true():
    for env_type, prompt, *_ in read_rows(find_section("What is an answer")):
        assert prompt_text(64, cast(EnvType, env_type.strip("`"))) == prompt.strip("`")


def test_credit_is_true():
    rows = read_rows(find_section("Credit"))
    assert len(rows) == 3
    for rewards, *signals in rows:
        for credit, signal in zip(get_args(Credit), signals, strict=True):
            np.testing.assert_array_equal(
                assign_credit(np.array([read_numbers(rewards)]), credit), [read_numbers(signal)]
            )


def test_advantages_are_true():
    section = find_section("Advantage")
    config = build(TrainConfig, split_words(re.search(r"`(env_type=[^`]*)`", section).group(1).split()))
    rows = read_rows(section)
    rewards = np.array([play(config, written)[1] for written, *_ in rows])
    np.testing.assert_array_equal(rewards, [read_numbers(row[1]) for row in rows])
    counts, cell = np.ones((len(rows), 1), dtype=int), np.zeros(len(rows), dtype=int)
    columns: dict[Advantage, int] = {"group_centered": 2, "leave_one_out": 3}
    for kind, column in columns.items():
        advantages = group_advantages(rewards, counts, cell, kind)[:, 0]
        shown = np.array([read_numbers(row[column]) for row in rows])
        np.testing.assert_allclose(np.where(np.isnan(rewards), np.nan, advantages), shown, atol=5e-4)
