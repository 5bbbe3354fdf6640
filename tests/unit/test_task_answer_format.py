"""How secrets are written: digits and texts, against Python's own integers and strings."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.config import TrainConfig
from memrl.task.answer_format import AnswerFormat, cell_format, integer_format
from memrl.task.secret import num_bits

ENV_TYPES = ("single_step", "multi_step")


@given(N=st.integers(2, 10**6), data=st.data())
def test_single_step_is_the_plain_decimal(N, data):
    guess = data.draw(st.integers(0, N - 1))
    answer_format = integer_format(N, "single_step", separator="ignored")
    (text,) = answer_format.spans(answer_format.digits(guess))
    assert int(text) == guess
    assert text == "0" or not text.startswith("0")


@given(N=st.integers(2, 10**6), separator=st.sampled_from(["", " ", ", "]), data=st.data())
def test_multi_step_is_the_bits_one_a_step(N, separator, data):
    guess = data.draw(st.integers(0, N - 1))
    answer_format = integer_format(N, "multi_step", separator)
    steps = answer_format.spans(answer_format.digits(guess))
    assert len(steps) == answer_format.num_env_steps == num_bits(N)
    assert int("".join(step[-1] for step in steps), 2) == guess
    assert [step[:-1] for step in steps] == [""] + [separator] * (len(steps) - 1)


@pytest.mark.parametrize("env_type", ENV_TYPES)
@pytest.mark.parametrize("N", [2, 3, 10, 100, 257])
def test_answers_differ(N, env_type):
    answer_format = integer_format(N, env_type)
    texts = ["".join(answer_format.spans(digits)) for digits in answer_format.digits(np.arange(N))]
    assert len(set(texts)) == N


@given(radix=st.integers(2, 30), length=st.integers(1, 8), data=st.data())
def test_integers_and_digits_are_one_another(radix, length, data):
    answer_format = AnswerFormat(radix, length, radix**length)
    values = np.array(data.draw(st.lists(st.integers(0, radix**length - 1), min_size=1, max_size=5)))
    digits = answer_format.digits(values)
    assert digits.shape == (len(values), length)
    np.testing.assert_array_equal(answer_format.integers(digits), values)
    assert [int("".join(np.base_repr(d, 36) for d in row), radix) for row in digits.tolist()] == values.tolist()
    assert answer_format.last_digits == [radix - 1] * length


def list_beginnings(radix, length):
    """Every beginning of a digit vector, shorter ones first, then in lexicographic order, padded with -1."""
    beginnings = [list(b) for written in range(length + 1) for b in product(range(radix), repeat=written)]
    return np.array([b + [-1] * (length - len(b)) for b in beginnings])


@pytest.mark.parametrize(("radix", "length"), [(2, 5), (3, 3), (7, 2), (10, 1)])
def test_beginnings_have_numbers_of_their_own_and_stand_for_their_smallest_answer(radix, length):
    answer_format, beginnings = AnswerFormat(radix, length, radix**length), list_beginnings(radix, length)
    numbers = answer_format.prefix_numbers(beginnings)
    assert numbers.tolist() == list(range(answer_format.num_prefixes))
    smallest = [min(int(v) for v in answer_format.integers(list_continuations(b, radix))) for b in beginnings]
    assert answer_format.integers(beginnings).tolist() == smallest


def list_continuations(beginning, radix):
    choices = [range(radix) if digit < 0 else [digit] for digit in beginning]
    return np.array(list(product(*choices)))


@pytest.mark.parametrize("radix", [2, 10, 11, 100, 101])
def test_symbols_without_a_stop_token_are_as_long_as_one_another(radix):
    texts = [AnswerFormat(radix, 3, radix**3).symbol_text(digit) for digit in range(radix)]
    assert [int(text) for text in texts] == list(range(radix))
    assert len(set(map(len, texts))) == 1


def test_worked_examples():
    single, multi, least = integer_format(100, "single_step"), integer_format(100, "multi_step"), AnswerFormat(2, 1, 2)
    assert single.spans(single.digits(99)) == ["99"]
    assert multi.spans(multi.digits(99)) == ["1", "1", "0", "0", "0", "1", "1"]
    assert multi.last_digits == [1, 1, 0, 0, 0, 1, 1]
    assert least.spans(least.digits(1)) == ["1"]
    assert AnswerFormat(2, 1024, 2**1024).last_digits == [1] * 1024
    assert cell_format(TrainConfig(N=10, env_type="multi_step", bit_separator=" ")) == AnswerFormat(2, 4, 10, " ")
