"""Strict parsing, against a reader of plain text that knows nothing of automata."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.task.answer_format import integer_format
from memrl.task.automaton import build_automaton
from memrl.task.parse import collect_outcomes, parse_answer
from memrl.task.secret import num_bits

CHARACTERS = "0123456789 -x"
STOP = len(CHARACTERS)


def encode(text):
    return [CHARACTERS.index(character) for character in text]


def build(N, env_type, separator=""):
    answer_format = integer_format(N, env_type, separator)
    texts = [answer_format.symbol_text(digit) for digit in range(answer_format.radix)]
    later = [encode(separator + text) for text in texts] if answer_format.num_env_steps > 1 else []
    return build_automaton(answer_format, [*map(encode, texts)], later, STOP if env_type == "single_step" else None)


def read_guess(automaton, parsed):
    return int(automaton.answer_format.integers(np.array(parsed.digits)))


def count_steps(parsed):
    return sum(digit >= 0 for digit in parsed.digits)


def read_decimal(text, N):
    """The integer, None if malformed: digits alone, no leading zero, below N."""
    if not text.isdigit() or text != str(int(text)) or int(text) >= N:
        return None
    return int(text)


@given(N=st.integers(2, 300), text=st.text(CHARACTERS, max_size=5) | st.integers(0, 400).map(str))
def test_single_step_reads_plain_decimals_only(N, text):
    automaton = build(N, "single_step")
    parsed = parse_answer(automaton, [*encode(text), STOP])
    expected = read_decimal(text, N)
    assert parsed.well_formed == (expected is not None)
    if expected is None:
        assert (read_guess(automaton, parsed), count_steps(parsed)) == (0, 0)
    else:
        assert (read_guess(automaton, parsed), count_steps(parsed)) == (expected, 1)
        assert parsed.num_tokens == len(text) + 1


@given(N=st.integers(2, 300), separator=st.sampled_from(["", " "]), data=st.data())
def test_multi_step_reads_bits_in_range_only(N, separator, data):
    k = num_bits(N)
    text = data.draw(st.text("01", min_size=k, max_size=k))
    place = data.draw(st.none() | st.integers(0, k - 1))
    written = list(text) if place is None else [*text[:place], "x"]
    tokens = encode(separator.join(written))
    automaton = build(N, "multi_step", separator)
    parsed = parse_answer(automaton, tokens)
    legal = 0
    while legal < len(written) and written[legal] in "01" and int("".join(written[: legal + 1]).ljust(k, "0"), 2) < N:
        legal += 1
    assert count_steps(parsed) == legal
    assert parsed.well_formed == (legal == k)
    assert read_guess(automaton, parsed) == int(text[:legal].ljust(k, "0"), 2)
    assert parsed.num_tokens == (len(tokens) if legal == k else legal * (1 + len(separator)) + 1)


@given(N=st.integers(2, 300), env_type=st.sampled_from(["single_step", "multi_step"]), data=st.data())
def test_the_end_of_an_episode_ends_the_reading(N, env_type, data):
    automaton = build(N, env_type)
    tokens = data.draw(st.lists(st.integers(0, STOP), min_size=automaton.depth, max_size=automaton.depth))
    parsed = parse_answer(automaton, tokens)
    more = data.draw(st.lists(st.integers(0, STOP + 5)))
    assert parse_answer(automaton, tokens + more) == parsed
    for end in range(parsed.num_tokens):
        assert parse_answer(automaton, tokens[:end]) is None


@pytest.mark.parametrize(
    ("text", "guess", "num_tokens"),
    [("7", 7, 2), ("63", 63, 3), ("64", None, 2), ("07", None, 2), ("", None, 1), ("-1", None, 1), ("6 3", None, 2)],
)
def test_worked_answers(text, guess, num_tokens):
    automaton = build(64, "single_step")
    parsed = parse_answer(automaton, [*encode(text), STOP])
    assert (read_guess(automaton, parsed) if parsed.well_formed else None, parsed.num_tokens) == (guess, num_tokens)


def test_tokens_beyond_the_vocabulary_of_answers_are_malformed():
    automaton = build(8, "multi_step")
    for token in (STOP, 10**6):
        assert parse_answer(automaton, [1, token]).digits == (1, -1, -1)
        assert not parse_answer(automaton, [1, token]).well_formed


def test_outcomes_keep_their_order():
    automaton = build(8, "multi_step")
    parsed = [parse_answer(automaton, encode(text)) for text in ("101", "0x", "110")]
    outcomes = collect_outcomes([answer for answer in parsed if answer])
    np.testing.assert_array_equal(outcomes.digits, [[1, 0, 1], [0, -1, -1], [1, 1, 0]])
    np.testing.assert_array_equal(outcomes.steps_done, [3, 1, 3])
    np.testing.assert_array_equal(outcomes.well_formed, [True, False, True])
