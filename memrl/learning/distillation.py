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
from memrl.task.own_reward import RewardError
from memrl.theory.bayes_agent import choose_guess


def ask_by_posterior(policy: PackPolicy, state: PackState) -> Splitter:
    """Episodes that ask what the posterior says is worth asking, whatever the policies would write.

    greedy: the guess that tells most. thompson: candidates, each drawn by the cell's own generator.
    """
    guesses = []
    for cell, key in zip(policy.roots.cell.tolist(), policy.roots.key.tolist(), strict=True):
        config, candidates = state.configs[cell], state.observer.candidates(cell, key)
        if config.explore == "greedy":
            channel = policy.channels.values[policy.channels.index[cell]]
            try:
                guesses.append(np.array([choose_guess(channel, candidates)]))
            except RewardError as error:
                state.progress.fail(cell, str(error))
                guesses.append(candidates[:1])
        else:
            guesses.append(state.generators[cell].choice(candidates, size=config.episodes_per_prompt))
    return _replay_guesses(policy, guesses)


def list_candidates(policy: PackPolicy, state: PackState) -> tuple[Splitter, Int[np.ndarray, "root 1"]]:
    """Every candidate of each secret that is asked once, as examples.

    Returns:
        the examples, and how many each root has.
    """
    asked = zip(policy.roots.cell.tolist(), policy.roots.key.tolist(), strict=True)
    candidates = [state.observer.candidates(cell, key) for cell, key in asked]
    return RepeatableSplitter(_replay_guesses(policy, candidates)), np.array([[len(of_root)] for of_root in candidates])


def _replay_guesses(policy: PackPolicy, guesses: Sequence[Int[np.ndarray, "_"]]) -> Splitter:
    tasks = [policy.tasks[cell] for cell in policy.roots.cell]
    episodes = [_write(task, of_root) for task, of_root in zip(tasks, guesses, strict=True)]
    return Replay(policy.forest, episodes, np.ones(len(episodes), dtype=np.int64))


def _write(task: EncodedTask, guesses: Int[np.ndarray, "guess"]) -> SampledEpisodes:
    letters = task.automaton.encode_many(task.answer_format.digits(guesses))
    tokens = np.where(letters >= 0, task.automaton.alphabet[letters], -1)
    return SampledEpisodes("", 0, tokens, np.full(tokens.shape, np.nan))
