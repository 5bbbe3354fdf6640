"""Strict parsing, against a reader of plain text that knows nothing of tries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.task.parse import collect_outcomes, parse_answer
from memrl.task.prompt import answer_steps
from memrl.task.secret import num_bits
from memrl.task.trie import build_trie

CHARACTERS = "0123456789 -x"
STOP = len(CHARACTERS)


def encode(text):
    return [CHARACTERS.index(character) for character in text]


def build(N, env_type, separator=""):
    answers = [[encode(step) for step in answer_steps(guess, N, env_type, separator)] for guess in range(N)]
    if env_type == "single_step":
        answers = [[[*steps[0], STOP]] for steps in answers]
    return build_trie(answers)


def read_decimal(text, N):
    """The integer, None if malformed: digits alone, no leading zero, below N."""
    if not text.isdigit() or text != str(int(text)) or int(text) >= N:
        return None
    return int(text)


@given(N=st.integers(2, 300), text=st.text(CHARACTERS, max_size=5) | st.integers(0, 400).map(str))
def test_single_step_reads_plain_decimals_only(N, text):
    parsed = parse_answer(build(N, "single_step"), [*encode(text), STOP])
    expected = read_decimal(text, N)
    assert parsed.well_formed == (expected is not None)
    if expected is None:
        assert (parsed.guess, parsed.steps_done) == (0, 0)
    else:
        assert (parsed.guess, parsed.steps_done, parsed.num_tokens) == (expected, 1, len(text) + 1)


@given(N=st.integers(2, 300), separator=st.sampled_from(["", " "]), data=st.data())
def test_multi_step_reads_bits_in_range_only(N, separator, data):
    k = num_bits(N)
    text = data.draw(st.text("01", min_size=k, max_size=k))
    place = data.draw(st.none() | st.integers(0, k - 1))
    written = list(text) if place is None else [*text[:place], "x"]
    tokens = encode(separator.join(written))
    parsed = parse_answer(build(N, "multi_step", separator), tokens)
    legal = 0
    while legal < len(written) and written[legal] in "01" and int("".join(written[: legal + 1]).ljust(k, "0"), 2) < N:
        legal += 1
    assert parsed.steps_done == legal
    assert parsed.well_formed == (legal == k)
    assert parsed.guess == int(text[:legal].ljust(k, "0"), 2)
    assert parsed.num_tokens == (len(tokens) if legal == k else legal * (1 + len(separator)) + 1)


@given(N=st.integers(2, 300), env_type=st.sampled_from(["single_step", "multi_step"]), data=st.data())
def test_the_end_of_an_episode_ends_the_reading(N, env_type, data):
    trie = build(N, env_type)
    tokens = data.draw(st.lists(st.integers(0, STOP), min_size=trie.depth, max_size=trie.depth))
    parsed = parse_answer(trie, tokens)
    more = data.draw(st.lists(st.integers(0, STOP + 5)))
    assert parse_answer(trie, tokens + more) == parsed
    for end in range(parsed.num_tokens):
        assert parse_answer(trie, tokens[:end]) is None


@pytest.mark.parametrize(
    ("text", "guess", "num_tokens"),
    [("7", 7, 2), ("63", 63, 3), ("64", None, 2), ("07", None, 2), ("", None, 1), ("-1", None, 1), ("6 3", None, 2)],
)
def test_worked_answers(text, guess, num_tokens):
    parsed = parse_answer(build(64, "single_step"), [*encode(text), STOP])
    assert (parsed.guess if parsed.well_formed else None, parsed.num_tokens) == (guess, num_tokens)


def test_tokens_beyond_the_vocabulary_of_answers_are_malformed():
    trie = build(8, "multi_step")
    for token in (STOP, 10**6):
        assert parse_answer(trie, [1, token]).steps_done == 1
        assert not parse_answer(trie, [1, token]).well_formed


def test_outcomes_keep_their_order():
    trie = build(8, "multi_step")
    parsed = [parse_answer(trie, encode(text)) for text in ("101", "0x", "110")]
    outcomes = collect_outcomes([answer for answer in parsed if answer])
    np.testing.assert_array_equal(outcomes.guess, [5, 0, 6])
    np.testing.assert_array_equal(outcomes.steps_done, [3, 1, 3])
    np.testing.assert_array_equal(outcomes.well_formed, [True, False, True])
