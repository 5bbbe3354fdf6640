"""Reading an answer, strictly: it is one that its format allows, in its one spelling, or it is malformed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memrl.task.automaton import AnswerAutomaton
from memrl.task.env import Outcomes


@dataclass(frozen=True)
class ParsedAnswer:
    """What a policy's tokens say, up to the first one that ends the episode.

    Attributes:
        num_tokens: tokens of the episode, the one that ended it included.
        digits: the digits of the env_steps that were completed legally, -1 for the others.
        well_formed: whether the answer is a whole one.
    """

    num_tokens: int
    digits: tuple[int, ...]
    well_formed: bool


def parse_answer(automaton: AnswerAutomaton, tokens: Sequence[int]) -> ParsedAnswer | None:
    """Follows tokens to the end of a whole answer, or to the first one after which no answer is left.

    Args:
        automaton: the answers.
        tokens: what the policy wrote after the prompt; what comes after the episode's end is not read.

    Returns:
        The answer; None where the tokens stop before the episode has ended.
    """
    state, digits = 0, [-1] * automaton.answer_format.num_env_steps
    for num_tokens, token in enumerate(tokens, start=1):
        letter = np.searchsorted(automaton.alphabet, token)
        legal = letter < len(automaton.alphabet) and automaton.alphabet[letter] == token
        following = int(automaton.child[state, letter]) if legal else -1
        if following < 0:
            return ParsedAnswer(num_tokens, tuple(digits), False)
        if automaton.digit[state, letter] >= 0:
            digits[automaton.steps_done[state]] = int(automaton.digit[state, letter])
        state = following
        if state == automaton.num_states - 1:
            return ParsedAnswer(num_tokens, tuple(digits), True)
    return None


def collect_outcomes(answers: Sequence[ParsedAnswer]) -> Outcomes:
    """Lays parsed answers to one prompt out as arrays, in their order."""
    return Outcomes(
        np.array([answer.digits for answer in answers], dtype=np.int64),
        np.array([answer.well_formed for answer in answers], dtype=bool),
    )
