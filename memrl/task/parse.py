"""Reading an answer, strictly: it is an integer in range in its one spelling, or it is malformed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memrl.task.env import Outcomes
from memrl.task.trie import AnswerTrie


@dataclass(frozen=True)
class ParsedAnswer:
    """What a policy's tokens say, up to the first one that ends the episode.

    Attributes:
        num_tokens: tokens of the episode, the one that ended it included.
        guess: the integer that was written; for a malformed answer the smallest one that begins with its complete
            env_steps.
        steps_done: env_steps that were completed legally.
        well_formed: whether the answer is an integer in range.
    """

    num_tokens: int
    guess: int
    steps_done: int
    well_formed: bool


def parse_answer(trie: AnswerTrie, tokens: Sequence[int]) -> ParsedAnswer | None:
    """Follows tokens down the trie to a whole answer, or to the first token after which no answer in range is left.

    Args:
        trie: the answers.
        tokens: what the policy wrote after the prompt; what comes after the episode's end is not read.

    Returns:
        The answer; None where the tokens stop before the episode has ended.
    """
    node, complete = 0, 0
    for num_tokens, token in enumerate(tokens, start=1):
        symbol = np.searchsorted(trie.alphabet, token)
        legal = symbol < len(trie.alphabet) and trie.alphabet[symbol] == token
        node = int(trie.child[node, symbol]) if legal else -1
        if node < 0:
            return ParsedAnswer(num_tokens, int(trie.prefix[complete]), int(trie.steps_done[complete]), False)
        if trie.answer[node] >= 0:
            return ParsedAnswer(num_tokens, int(trie.answer[node]), int(trie.steps_done[node]), True)
        if trie.steps_done[node] > trie.steps_done[complete]:
            complete = node
    return None


def collect_outcomes(answers: Sequence[ParsedAnswer]) -> Outcomes:
    """Lays parsed answers out as arrays, in their order."""
    return Outcomes(
        np.array([answer.guess for answer in answers], dtype=np.int64),
        np.array([answer.steps_done for answer in answers], dtype=np.int64),
        np.array([answer.well_formed for answer in answers], dtype=bool),
    )
