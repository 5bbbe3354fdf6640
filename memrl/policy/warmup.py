"""The warm-up: makes a model answer prompts uniformly, without ever sampling an answer's tokens as labels.

The targets are exact: at every node of a prompt's tree of answers the next-token distribution of a uniform secret is
known. The loss sums KL(target || policy) along the paths of some answers, so that its mean over all answers is the
divergence KL(uniform || policy) of the whole answer. KL alone hardly feels a rare token (after "1" the answer ends with
probability 1/1111 when N = 4096), but the rarest answer counts as one secret like any other; so the mean squared
log-ratio of the tokens that may follow is added at each node, which weighs rare tokens like common ones and has the
same minimum. Answers and prompts that deviate most are drawn more often.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.calibration import Prior, compute_answer_log2, summarize_prior
from memrl.policy.decorrelation import Decorrelation
from memrl.policy.head import find_head
from memrl.policy.head_room import widen_head
from memrl.policy.keys import draw_keys
from memrl.policy.probes import Probes
from memrl.policy.tree_pass import TreeBatch, plant_trees, score_nodes


@dataclass(frozen=True)
class WarmupRecipe:
    """How to warm up.

    Attributes:
        steps: the most optimizer steps.
        learning_rate: AdamW's peak; it rises over the first 2 % of the steps and falls to zero along a half cosine.
        seed: seeds the choice of prompts and answers.
        prompts_per_step: rows of a batch.
        nodes_per_prompt: about how many nodes of its tree a row holds.
        ratio_weight: weight of the squared log-ratio beside the KL.
        probe_weight: weight of the probes' loss beside it; 0: no probes.
        decorrelate: weight of the places' likeness beside it, see `memrl.policy.decorrelation`; 0: left as it comes,
            negative: places are made alike.
        frozen_head: whether the head is first given room, see `memrl.policy.head_room`, and then stays.
        measure_every: steps between two exact measurements of every prompt.
        stop_early: whether to stop at a measurement that meets the targets.
    """

    steps: int
    learning_rate: float
    seed: int = 0
    prompts_per_step: int = 16
    nodes_per_prompt: int = 96
    ratio_weight: float = 0.1
    probe_weight: float = 0.0
    decorrelate: float = 0.0
    frozen_head: bool = False
    measure_every: int = 250
    stop_early: bool = False


BODY_RECIPE = WarmupRecipe(steps=2000, learning_rate=1e-3, measure_every=100, stop_early=True)
"""Of a model that has learned something already."""

EMBEDDED_RECIPE = WarmupRecipe(
    steps=2400,
    learning_rate=3e-3,
    prompts_per_step=20,
    nodes_per_prompt=24,
    probe_weight=1.0,
    decorrelate=2.0,
    measure_every=600,
)
"""Of the embedded model."""

EMBEDDED_FINISH = WarmupRecipe(
    steps=1000,
    learning_rate=1e-3,
    prompts_per_step=20,
    nodes_per_prompt=24,
    probe_weight=0.05,
    decorrelate=0.1,
    measure_every=250,
)
"""After it: the answers that are still the least uniform, and hardly anything asked of the states."""

EMBEDDED_SETTLE = WarmupRecipe(
    steps=400,
    learning_rate=5e-4,
    prompts_per_step=20,
    nodes_per_prompt=24,
    probe_weight=0.05,
    decorrelate=0.1,
    frozen_head=True,
    measure_every=200,
)
"""At last: the head gets room, and the body learns to answer under it."""

EMBEDDED_STAGES = (EMBEDDED_RECIPE, EMBEDDED_FINISH, EMBEDDED_SETTLE)

_TOKENS = 12
"""Tokens of an answer beyond which its loss is that of so many of them on average: long ones would drown the others."""

_WIDTHS = (56, 160)
"""Tokens of a prompt and its nodes up to which rows are fed together."""

_Drawn = tuple[EncodedTask, np.ndarray]

TARGET_KL_BITS = 0.02
TARGET_DEVIATION_BITS = 0.3
TARGET_MASS = 0.99


def meets_targets(prior: Prior) -> bool:
    """Whether a prior is as uniform as the embedded model's has to be; stricter than `Prior.is_calibrated`."""
    return (
        prior.kl_bits <= TARGET_KL_BITS
        and prior.max_deviation_bits <= TARGET_DEVIATION_BITS
        and prior.well_formed_mass >= TARGET_MASS
    )


@dataclass(frozen=True)
class WarmupProgress:
    """How far a warm-up has come.

    Attributes:
        step: optimizer steps so far.
        loss: of the last step, nats.
        priors: one per prompt, in the order of the tasks, after steps at which all were measured; else None.
    """

    step: int
    loss: float
    priors: list[Prior] | None


@dataclass
class AnswerSampler:
    """Draws the prompts and answers of each step, half of them uniformly and half by how far they deviate.

    Attributes:
        tasks: the prompts.
        rng: the source of chance.
        deviations: |log2 P(answer) - log2(1/N)| of every answer, by prompt, as last measured; ones before that.
    """

    tasks: Sequence[EncodedTask]
    rng: np.random.Generator
    deviations: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deviations = [np.ones(len(task.tree.paths)) for task in self.tasks]

    def measure(self, model: PreTrainedModel) -> list[Prior]:
        """Measures every prompt, a keyed one behind one key, and draws by what was found from now on."""
        keys = draw_keys(self.rng, len(self.tasks))
        measured = [task.with_key(int(key)) if task.keyed else task for task, key in zip(self.tasks, keys, strict=True)]
        log2_p = [compute_answer_log2(model, task) for task in measured]
        signal = [task.answer_format.signal_bits for task in self.tasks]
        self.deviations = [np.abs(answers + bits) for answers, bits in zip(log2_p, signal, strict=True)]
        return [summarize_prior(answers, bits) for answers, bits in zip(log2_p, signal, strict=True)]

    def draw_prompts(self, count: int) -> np.ndarray:
        """Draws indices of distinct prompts; int64 (at most count,)."""
        worst = np.array([deviation.max() for deviation in self.deviations])
        weight = 0.5 / len(worst) + 0.5 * worst / worst.sum()
        return self.rng.choice(len(worst), size=min(count, len(worst)), replace=False, p=weight / weight.sum())

    def draw(self, prompt: int, num_nodes: int) -> tuple[EncodedTask, np.ndarray]:
        """Draws a key for a prompt that is keyed, and some of its answers.

        Answers to a prompt that has too many to be listed are drawn afresh; of listed ones see `draw_answers`.

        Returns:
            The task, with the key in its prompt and the answers in its tree; and their numbers there, int64 (answers,).
        """
        task = self.tasks[prompt]
        if task.keyed:
            task = task.with_key(int(draw_keys(self.rng, 1)[0]))
        answers = task.answer_format
        if len(task.tree.paths) >= answers.num_answers:
            return task, self.draw_answers(prompt, num_nodes)
        count = max(1, num_nodes // (task.max_tokens - 1))
        task = task.with_answers(self.rng.integers(answers.radix, size=(count, answers.num_env_steps)))
        return task, np.arange(count)

    def draw_answers(self, prompt: int, num_nodes: int) -> np.ndarray:
        """Draws distinct answers to one prompt, whose paths hold about `num_nodes` inner nodes; int64 (answers,)."""
        count = max(1, num_nodes // max(1, self.tasks[prompt].max_tokens - 1))
        squared = self.deviations[prompt] ** 2 + 1e-9
        N = len(squared)
        if count >= N:
            return np.arange(N)
        weight = 0.5 / N + 0.5 * squared / squared.sum()
        return self.rng.choice(N, size=count, replace=False, p=weight / weight.sum())


def compute_warmup_loss(
    model: PreTrainedModel,
    tasks: Sequence[EncodedTask],
    answers: Sequence[np.ndarray],
    ratio_weight: float,
    extra: Callable[[Sequence[EncodedTask], TreeBatch], Tensor] | None = None,
) -> Tensor:
    """Computes the loss of some answers, nats, averaged over answers and then over prompts.

    Σ_t KL(p_t || q_t) + ratio_weight · mean_a (log q_t(a) - log p_t(a))² along an answer's path, with p_t the exact
    next-token distribution of a uniform secret, q_t the policy's, and the mean over the tokens that p_t allows.

    Args:
        model: the policy, in training or evaluation mode.
        tasks: prompts.
        answers: for each of them the integers whose paths count, int64 (answers,).
        ratio_weight: weight of the squared log-ratio.
        extra: what is added, from what the model made of prompts and nodes.

    Returns:
        Scalar with gradient, at least 0.
    """
    nodes = [task.tree.inner_nodes(chosen) for task, chosen in zip(tasks, answers, strict=True)]
    batch = plant_trees(tasks, nodes)
    losses = []
    for task, chosen, row, log_q in zip(tasks, answers, batch.nodes, score_nodes(model, batch), strict=True):
        passes = _weigh_nodes(task, chosen, row)
        log_p = task.automaton.uniform_log2()[task.tree.state[row]] * math.log(2)
        weight, log_p = (torch.from_numpy(array).to(log_q) for array in (passes, log_p))
        allowed = torch.isfinite(log_p)
        log_ratio = log_q[:, torch.from_numpy(task.automaton.alphabet).to(log_q.device)] - log_p
        log_ratio = torch.where(allowed, log_ratio, 0.0)
        divergence = -(log_p.exp() * log_ratio).sum(dim=1)
        squared = (log_ratio**2).sum(dim=1) / allowed.sum(dim=1)
        losses.append(weight @ (divergence + ratio_weight * squared) / max(1.0, task.max_tokens / _TOKENS))
    loss = torch.stack(losses).mean()
    return loss if extra is None else loss + extra(tasks, batch)


def _weigh_nodes(task: EncodedTask, answers: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The share of `answers` whose path passes each node, float64 (nodes,)."""
    into = task.tree.paths[answers]
    passed = np.searchsorted(nodes, task.tree.parent[into[into >= 0]])
    return np.bincount(passed, minlength=len(nodes)) / len(answers)


def warm_up(
    model: PreTrainedModel,
    tasks: Sequence[EncodedTask],
    recipe: WarmupRecipe,
    report: Callable[[WarmupProgress], None] = lambda progress: None,
) -> list[float]:
    """Trains the parameters of `model` that require a gradient until its prompts are answered uniformly.

    Args:
        model: the policy; changed in place, left in evaluation mode.
        tasks: the prompts.
        recipe: how.
        report: called after every step.

    Returns:
        The loss of each step, nats.
    """
    if recipe.frozen_head:
        widen_head(model, tasks, recipe.seed)
        find_head(model).requires_grad_(False)
    sides = _Sides(model, recipe)
    parameters = [p for p in (*model.parameters(), *sides.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    sampler = AnswerSampler(tasks, np.random.default_rng(recipe.seed))
    losses: list[float] = []
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(step, recipe.steps)
        sides.share = side_share(step, recipe.steps)
        rows = sampler.draw_prompts(recipe.prompts_per_step)
        drawn = [sampler.draw(row, recipe.nodes_per_prompt) for row in rows]
        optimizer.zero_grad()
        losses.append(0.0)
        for part in _sort_by_length(drawn):
            chosen, answers = zip(*part, strict=True)
            loss = compute_warmup_loss(model, chosen, answers, recipe.ratio_weight, sides.compute_loss)
            share = len(part) / len(drawn)
            (share * loss).backward()
            losses[-1] += share * loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        due = (step + 1) % recipe.measure_every == 0 or step + 1 == recipe.steps
        priors = sampler.measure(model) if due else None
        report(WarmupProgress(step + 1, losses[-1], priors))
        if recipe.stop_early and priors is not None and all(meets_targets(prior) for prior in priors):
            break
    sides.close()
    if recipe.frozen_head:
        find_head(model).requires_grad_(True)
    return losses


class _Sides:
    """What a warm-up asks of the states beside uniform answers: probes, and places that differ; `share` of it."""

    def __init__(self, model: PreTrainedModel, recipe: WarmupRecipe) -> None:
        self._recipe, self.share = recipe, 1.0
        self._probes = Probes(model, recipe.seed) if recipe.probe_weight else None
        self._decorrelation = Decorrelation(model) if recipe.decorrelate else None

    def parameters(self) -> list[nn.Parameter]:
        """The readers' weights."""
        return [] if self._probes is None else list(self._probes.parameters())

    def compute_loss(self, tasks: Sequence[EncodedTask], batch: TreeBatch) -> Tensor:
        """The weighted sum, of what the model has just been given."""
        loss = torch.zeros(())
        if self._probes is not None:
            loss = loss + self._recipe.probe_weight * self._probes.compute_loss(tasks, batch)
        if self._decorrelation is not None:
            loss = loss + self._recipe.decorrelate * self._decorrelation.compute_loss(batch)
        return self.share * loss

    def close(self) -> None:
        """Stops watching the model."""
        for side in (self._probes, self._decorrelation):
            if side is not None:
                side.close()


def _sort_by_length(drawn: Sequence[_Drawn]) -> list[list[_Drawn]]:
    """Rows of a batch apart from much longer ones, to whose length they would be padded."""
    lengths = np.array([len(task.prompt_ids) + len(task.tree.inner_nodes(answers)) for task, answers in drawn])
    kind = np.searchsorted(_WIDTHS, lengths)
    return [[drawn[row] for row in np.flatnonzero(kind == which)] for which in np.unique(kind)]


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: a rise over the first 2 % of the steps, then a half cosine to zero.

    >>> [round(learning_rate_share(step, 100), 3) for step in (0, 1, 2, 51, 100)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = max(1, steps // 50)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / (steps - rise)))


def side_share(step: int, steps: int) -> float:
    """Share of the sides' weights: all of it in the first 45 % of the steps, a twentieth in the last 45 %.

    The states come first, while the noise of what is asked of the answers is small beside what is asked of them; then
    the answers become uniform, and what is left of the sides keeps the states.

    >>> [round(side_share(step, 100), 3) for step in (0, 45, 50, 55, 99)]
    [1.0, 1.0, 0.525, 0.05, 0.05]
    """
    fallen = min(1.0, max(0.0, (step / steps - 0.45) / 0.1))
    return 1.0 - 0.95 * fallen


def attach_lora(model: PreTrainedModel, rank: int, seed: int) -> Any:
    """Freezes a model and puts a trainable float32 LoRA on all its linear layers but the head, by PEFT.

    Args:
        model: the base; its layers are wrapped in place.
        rank: of the adapter; its scale is 32 / rank.
        seed: seeds the adapter's start.
    """
    config = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def merge_lora(adapted: PeftModel) -> PreTrainedModel:
    """Adds the adapter to the base's weights and returns the plain model."""
    return adapted.merge_and_unload().eval()
