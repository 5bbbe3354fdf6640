"""One update of a pack, from its episodes to its adapters: the experiment on one screen."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memrl.learning.distillation import list_candidates
from memrl.learning.keys import ask_keys, score_keys
from memrl.learning.objective import judge_episodes, sum_losses, sum_penalties, weigh_edges
from memrl.learning.policy import PackPolicy
from memrl.learning.reward import observe_walk, reward_walk
from memrl.learning.roots import Roots
from memrl.learning.state import PackState
from memrl.policy.trie_walk import Splitter, Walk, walk_tries
from memrl.rollout.repeat import RepeatableSplitter
from memrl.task.result import DIVERGED


@dataclass(frozen=True)
class Update:
    """What happened in one update.

    Attributes:
        walk: the episodes, and what the policies before the update thought of them.
        rewards: NaN at env_steps that were not taken.
        advantages: of its outcomes; None where the cells are distilled.
        rollout_logprob: the sampler's log-probability of each edge, nats.
        gradient_norm: the l2 norm of each cell's gradient.
        learned: which cells made the update; the others have ended.
        measured: which cells were measured before it.
    """

    walk: Walk
    rewards: Float[np.ndarray, "outcome env_step"]
    advantages: Float[np.ndarray, "outcome group env_step"] | None
    rollout_logprob: Float[Tensor, "edge"]
    gradient_norm: Float[np.ndarray, "cell"]
    learned: Bool[np.ndarray, "cell"]
    measured: Bool[np.ndarray, "cell"]


def update(policy: PackPolicy, state: PackState, splitter: Splitter) -> Update:
    """Scores every cell's secret, takes its episodes, and updates its adapter, once or as often as the batch is used.

    A cell whose time is up is scored and not updated: it stays in the state, as ended, for the caller to take out.

    Args:
        policy: the policies, which write the answers.
        state: of the pack; changed in place.
        splitter: whose episodes: drawn here (`InProcessSampler`), or elsewhere (`Replay`).
    """
    # Measure: of keys that are due, all are scored; a secret without a key lies on the walk itself.
    due = state.progress.find_due()
    measured = score_keys(policy, state, due)

    # Walk: answers are drawn and scored in one pass, and the secrets of the keys that are asked with them.
    batch, roots = RepeatableSplitter(splitter), policy.roots
    walk = walk_tries(policy.network, policy.forest, roots.num_episodes, batch, policy.weighs_nodes)
    rollout_logprob = batch.find_rollout_logprob(walk)
    walked = np.bincount(roots.cell, walk.secret_log2, len(state))
    state.progress.score(
        state.configs, due, np.where(np.isnan(measured), walked, measured), state.observer.observed_bits
    )

    # Reward: what the channel tells of each answer; an ideal observer hears it, too.
    rewards, faults = reward_walk(walk, policy.channels, roots.secrets, policy.num_env_steps)
    faults = observe_walk(state.observer, walk, rewards, roots.key, policy.channels, faults)
    state.progress.fail_cells(faults)

    # Advantage: how each episode compares with its group; to distill, every secret still possible is an example.
    if policy.distills:
        batch, num_episodes = list_candidates(policy, state)
        taught = walk_tries(policy.network, policy.forest, num_episodes, batch)
        advantages = np.ones((len(taught.outcomes), 1, rewards.shape[1]))
    else:
        taught, num_episodes = walk, roots.num_episodes
        advantages = judge_episodes(walk, rewards, policy.objectives)

    # Loss and update: each cell by its own episodes, as often as the batch is used.
    share = np.where(state.progress.is_training[roots.cell], 1.0 / (num_episodes.sum(1) * roots.siblings), 0.0)
    norms = _learn(policy, state, taught, batch, advantages, share)
    for _ in range(policy.updates_per_batch - 1):
        taught = walk_tries(policy.network, policy.forest, num_episodes, batch, policy.weighs_nodes)
        norms = _learn(policy, state, taught, batch, advantages, share)

    # Count: what the update used; the next one asks the next keys.
    learned = state.progress.is_training
    episodes = np.bincount(roots.cell, roots.num_episodes.sum(1), len(state)).astype(np.int64)
    state.progress.count(learned, episodes, _count_tokens(walk, roots))
    ask_keys(policy, state)
    judged = None if policy.distills else advantages
    return Update(walk, rewards, judged, rollout_logprob, norms, learned, due)


def _learn(
    policy: PackPolicy,
    state: PackState,
    walk: Walk,
    batch: Splitter,
    advantages: Float[np.ndarray, "outcome group env_step"],
    share: Float[np.ndarray, "root"],
) -> Float[np.ndarray, "cell"]:
    """One update of every adapter from a walk's episodes; returns the gradients' norms, float64 (cells,)."""
    gain, cost = weigh_edges(walk, advantages, share)
    if gain.any() or cost.any() or walk.nodes is not None:  # else there is no gradient, and Adam goes on by its moments
        loss = sum_losses(walk, batch.find_rollout_logprob(walk), gain, cost, policy.objectives)
        if walk.nodes is not None:
            loss = loss + sum_penalties(walk.nodes, policy.score_base(walk.nodes), share, policy.objectives)
        policy.network.backpropagate(loss)
    norms = state.adapters.gradient_norms()
    state.adapters.update(ended=np.flatnonzero(~state.progress.is_training).tolist())
    for cell in np.flatnonzero(~np.isfinite(norms)):
        state.progress.fail(cell, f"{DIVERGED}: the gradient's norm is {norms[cell]}")
    return norms


def _count_tokens(walk: Walk, roots: Roots) -> Int[np.ndarray, "cell"]:
    """Tokens of each cell's episodes, each counted in full with its prompt."""
    lengths = roots.prompt_tokens[walk.outcome_root] + (walk.outcome_path >= 0).sum(1)
    tokens = np.bincount(walk.outcome_cell, lengths * walk.outcome_counts.sum(1), minlength=int(roots.cell[-1]) + 1)
    return tokens.astype(np.int64)
