"""Prompts and the texts that answer them."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.task.prompt import answer_steps, prompt_text
from memrl.task.secret import num_bits

ENV_TYPES = ("single_step", "multi_step")


def test_every_task_has_a_prompt_of_its_own():
    prompts = [prompt_text(N, env_type) for N in range(2, 1025) for env_type in ENV_TYPES]
    assert len(set(prompts)) == len(prompts)


def test_a_prompt_cannot_know_the_secret():
    assert list(inspect.signature(prompt_text).parameters) == ["N", "env_type"]


@given(N=st.integers(2, 10**6), env_type=st.sampled_from(ENV_TYPES))
def test_a_prompt_names_the_range(N, env_type):
    assert re.findall(r"\d+", prompt_text(N, env_type)) == ["0", str(N - 1)]


@given(N=st.integers(2, 10**6), data=st.data())
def test_single_step_is_the_plain_decimal(N, data):
    guess = data.draw(st.integers(0, N - 1))
    (text,) = answer_steps(guess, N, "single_step", separator="ignored")
    assert int(text) == guess
    assert text == "0" or not text.startswith("0")


@given(N=st.integers(2, 10**6), separator=st.sampled_from(["", " ", ", "]), data=st.data())
def test_multi_step_is_the_bits_one_a_step(N, separator, data):
    guess = data.draw(st.integers(0, N - 1))
    steps = answer_steps(guess, N, "multi_step", separator)
    assert len(steps) == num_bits(N)
    assert int("".join(step[-1] for step in steps), 2) == guess
    assert [step[:-1] for step in steps] == [""] + [separator] * (len(steps) - 1)


@pytest.mark.parametrize("env_type", ENV_TYPES)
@pytest.mark.parametrize("N", [2, 3, 10, 100, 257])
def test_answers_differ(N, env_type):
    texts = ["".join(answer_steps(guess, N, env_type)) for guess in range(N)]
    assert len(set(texts)) == N


def test_worked_examples():
    assert prompt_text(2, "single_step") == "0-1:"
    assert prompt_text(100, "multi_step") == "bits 0-99:"
    assert answer_steps(99, 100, "single_step") == ["99"]
    assert answer_steps(99, 100, "multi_step") == ["1", "1", "0", "0", "0", "1", "1"]
    assert answer_steps(1, 2, "multi_step", " ") == ["1"]
