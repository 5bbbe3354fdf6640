"""Prompts and the texts that answer them."""

import inspect
import re

from hypothesis import given
from hypothesis import strategies as st

from memrl.task.prompt import prompt_text

ENV_TYPES = ("single_step", "multi_step")


def test_every_task_has_a_prompt_of_its_own():
    prompts = [prompt_text(N, env_type) for N in range(2, 1025) for env_type in ENV_TYPES]
    assert len(set(prompts)) == len(prompts)


def test_a_prompt_cannot_know_the_secret():
    assert list(inspect.signature(prompt_text).parameters) == ["N", "env_type", "template", "secret_length", "key"]


@given(N=st.integers(2, 10**6), env_type=st.sampled_from(ENV_TYPES))
def test_a_prompt_names_the_range(N, env_type):
    assert re.findall(r"\d+", prompt_text(N, env_type)) == ["0", str(N - 1)]


def test_worked_examples():
    assert prompt_text(2, "single_step") == "0-1:"
    assert prompt_text(100, "multi_step") == "bits 0-99:"
