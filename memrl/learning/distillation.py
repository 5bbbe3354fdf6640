"""Posterior distillation: a policy is trained towards all that an ideal observer of its rewards knows.

The posterior of a uniform secret under a channel that is a function is uniform over the secrets that agree with all
feedback, so its soft targets along the tree of answers are those of every candidate as an example. No loss can make
this network absorb more of the same rewards: it is the line above every policy gradient.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from memrl.learning.policy import PackPolicy
from memrl.learning.state import PackState
from memrl.policy.base_model import EncodedTask
from memrl.policy.trie_walk import Splitter
from memrl.rollout.backend import SampledEpisodes
from memrl.rollout.repeat import RepeatableSplitter
from memrl.rollout.replay import Replay
from memrl.task.reward import RewardError
from memrl.theory.bayes_agent import choose_guess


def ask_by_posterior(policy: PackPolicy, state: PackState) -> Splitter:
    """Episodes that ask what the posterior says is worth asking, whatever the policies would write.

    greedy: the guess that tells most. thompson: candidates, each drawn by the cell's own generator.
    """
    guesses = []
    for cell, config in enumerate(state.configs):
        candidates = state.observer.candidates(cell)
        if config.explore == "greedy":
            channel = policy.channels.values[policy.channels.index[cell]]
            try:
                guesses.append([choose_guess(channel, candidates)])
            except RewardError as error:
                state.progress.fail(cell, str(error))
                guesses.append([int(candidates[0])])
        else:
            guesses.append(state.generators[cell].choice(candidates, size=config.episodes_per_update).tolist())
    return _replay_guesses(policy, guesses)


def list_candidates(policy: PackPolicy, state: PackState) -> tuple[Splitter, Int[np.ndarray, "cell 1"]]:
    """Every candidate of each cell once, as examples.

    Returns:
        the examples, and how many each cell has.
    """
    candidates = [state.observer.candidates(cell).tolist() for cell in range(len(state))]
    return RepeatableSplitter(_replay_guesses(policy, candidates)), np.array([[len(of_cell)] for of_cell in candidates])


def _replay_guesses(policy: PackPolicy, guesses: Sequence[Sequence[int]]) -> Splitter:
    episodes = [_write(task, of_cell) for task, of_cell in zip(policy.tasks, guesses, strict=True)]
    return Replay(policy.forest, episodes, np.ones(len(episodes), dtype=np.int64))


def _write(task: EncodedTask, guesses: Sequence[int]) -> SampledEpisodes:
    tokens = np.full((len(guesses), task.max_tokens), -1)
    for row, guess in zip(tokens, guesses, strict=True):
        answer = task.automaton.tokens(task.answer_format.digits(guess))
        row[: len(answer)] = answer
    return SampledEpisodes("", 0, tokens, np.full(tokens.shape, np.nan))
