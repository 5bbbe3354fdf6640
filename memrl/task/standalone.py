"""A task for a trainer of your own: a secret's prompt and its rewards, of answers as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from memrl.config import TrainConfig
from memrl.task.answer_format import cell_digits, cell_format
from memrl.task.automaton import AnswerAutomaton, build_automaton
from memrl.task.env import Outcomes, step_rewards
from memrl.task.parse import collect_outcomes, parse_answer
from memrl.task.prompt import prompt_text
from memrl.task.reward import build_channel

_END = 0x110000
"""Stands for the end of an answer that is read as text; no character has this code."""

_NO_TOKEN = -1
"""Ends an answer that was cut short, as one that is malformed."""


class Task:
    """A secret to be memorized: its prompt, and the reward of an answer.

    >>> task = Task(N=64, reward_type="binary", secret=42)
    >>> task.prompt, task.answer, task.reward(["42", "7", "forty-two"])
    ('0-63:', '42', [1.0, 0.0, 0.0])
    >>> Task(N=2, secret_length=8, env_type="multi_step", reward_type="element_count", secret=5).reward(["00000000"])
    [6.0]

    Args:
        fields: those of memrl.TrainConfig (N, reward_type, secret_length, seed, ...), where a trainer says what it uses
            (learning_rate, lora_rank, batch_size, ...), too: they tell its rows apart in the tables.

    Attributes:
        config: all fields.
        channel: what an episode tells.

    Raises:
        ValueError: a field makes no sense, or asks for keys.
    """

    def __init__(self, **fields: Any) -> None:
        self.config = TrainConfig(**fields)
        if self.config.num_keys is not None:
            raise ValueError(f"num_keys must be unset for a task of one secret, got {self.config.num_keys}")
        self.channel = build_channel(self.config)
        self.digits = cell_digits(self.config)
        self._secret = self.channel.answer_format.read(self.digits)
        self._characters: AnswerAutomaton | None = None

    @property
    def prompt(self) -> str:
        """What the policy reads; the same for every secret."""
        config = self.config
        return prompt_text(config.N, config.env_type, config.prompt, config.secret_length)

    @property
    def answer(self) -> str:
        """The secret as a policy writes it, such as for supervised learning."""
        return "".join(self.channel.answer_format.spans(self.digits))

    @property
    def signal_bits(self) -> float:
        """What there is to learn, in bits."""
        return self.config.signal_bits

    def reward(self, completions: Sequence[str], **_: object) -> list[float]:
        """The return of each answer, read as text to its end: the sum of its rewards.

        Args:
            completions: what the policy wrote after the prompt, without special tokens.
        """
        return np.nansum(self.pay(self.read(completions)), axis=1).tolist()

    def read(self, completions: Sequence[str]) -> Outcomes:
        """How these answers end, read as text."""
        if self._characters is None:
            self._characters = _spell(self.config)
        return read_tokens(self._characters, [[*map(ord, text), _END] for text in completions])

    def pay(self, outcomes: Outcomes) -> Float[np.ndarray, "outcome env_step"]:
        """Rewards of episodes at each env_step, NaN where an env_step was not taken."""
        return step_rewards(self.channel, outcomes, self._secret)


def read_tokens(automaton: AnswerAutomaton, answers: Sequence[Sequence[int]]) -> Outcomes:
    """How answers end that are given as tokens; one that was cut short is malformed."""
    parsed = [parse_answer(automaton, [*tokens, _NO_TOKEN]) for tokens in answers]
    return collect_outcomes([answer for answer in parsed if answer is not None])


def _spell(config: TrainConfig) -> AnswerAutomaton:
    """The answers of a task with characters for tokens."""
    answer_format = cell_format(config)
    texts = [answer_format.symbol_text(digit) for digit in range(answer_format.radix)]
    first = [[*map(ord, text)] for text in texts]
    later = [[*map(ord, answer_format.separator + text)] for text in texts] if answer_format.num_env_steps > 1 else []
    return build_automaton(answer_format, first, later, _END if answer_format.ends_with_stop else None)
