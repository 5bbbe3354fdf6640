"""docs/episodes.md says what happens: every row of its tables is played."""

import math
import re
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest

from memrl.cli import build, split_words
from memrl.config import Advantage, Credit, EnvType, TrainConfig
from memrl.task.advantage import AdvantageRule, assign_credit, group_advantages
from memrl.task.answer_format import cell_digits, cell_format
from memrl.task.automaton import build_automaton
from memrl.task.env import step_rewards
from memrl.task.parse import collect_outcomes, parse_answer
from memrl.task.prompt import prompt_text
from memrl.task.reward import build_channel

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
    answer_format = cell_format(config)
    (stop,) = encode("⏹") if answer_format.ends_with_stop else [None]
    symbols = [encode(answer_format.symbol_text(digit)) for digit in range(answer_format.radix)]
    automaton = build_automaton(answer_format, symbols, symbols, stop)
    text = "".join(re.findall(r"`([^`]*)`", written))
    parsed = parse_answer(automaton, encode(text))
    assert parsed is not None, f"{text} goes on"
    assert parsed.num_tokens == len(text), f"{text} ends before its end"
    secret = answer_format.read(cell_digits(config))
    (rewards,) = step_rewards(build_channel(config), collect_outcomes([parsed]), secret)
    digits = np.array(parsed.digits)
    said = " ".join(answer_format.spans(digits)) if answer_format.is_sequence else str(answer_format.integers(digits))
    return said if parsed.well_formed else "malformed", rewards


SECTIONS = re.findall(r"\n### `([^`]*)`\n(.*?)(?=\n##)", TEXT, re.S)
WORKED = [(words, *row) for words, section in SECTIONS for row in read_rows(section)]


@pytest.mark.parametrize(("words", "written", "guess", "rewards"), WORKED)
def test_worked_sequences_are_true(words, written, guess, rewards):
    config = build(TrainConfig, split_words(words.split()))
    said, paid = play(config, written)
    assert said == guess
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
        advantages = group_advantages(rewards, counts, cell, AdvantageRule(kind))[:, 0]
        shown = np.array([read_numbers(row[column]) for row in rows])
        np.testing.assert_allclose(np.where(np.isnan(rewards), np.nan, advantages), shown, atol=5e-4)
