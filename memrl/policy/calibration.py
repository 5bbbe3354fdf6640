"""The prior: what a policy answers before it has learned anything, exactly, over the whole tree of answers."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.panels import count_weights
from memrl.policy.questions import KL_LIMIT_BITS, MASS_LIMIT
from memrl.policy.tree_pass import TreeBatch, plant_trees, score_nodes
from memrl.policy.walk_check import check_walk
from memrl.suggest import as_typed

_ANSWERS_PER_PASS = 256
_NODES_PER_PASS = 4096
_FEWEST_KEYS = 8
_MOST_MULTIPLICATIONS = 1e12
"""Of the keys that are looked at, tokens times parameters."""


@dataclass(frozen=True)
class Prior:
    """How far a policy is from a uniform secret.

    Attributes:
        kl_bits: KL(uniform || policy) over the N answers, bits.
        max_deviation_bits: largest |log2 P(answer) - log2(1/N)| over the N answers, bits.
        well_formed_mass: probability of an answer in range, 0 .. 1.
    """

    kl_bits: float
    max_deviation_bits: float
    well_formed_mass: float

    @property
    def is_calibrated(self) -> bool:
        """Whether a run from here may call its bits bits."""
        return self.kl_bits <= KL_LIMIT_BITS and self.well_formed_mass >= MASS_LIMIT


def iterate_trees(task: EncodedTask, answers_per_pass: int = _ANSWERS_PER_PASS) -> Iterator[TreeBatch]:
    """Yields batches of one row that together hold every inner node; nodes that passes share occur in each of them."""
    order = np.lexsort(task.tree.paths.T[::-1])
    answers_per_pass = max(1, min(answers_per_pass, _NODES_PER_PASS // task.max_tokens))
    for start in range(0, len(order), answers_per_pass):
        yield plant_trees([task], [task.tree.inner_nodes(order[start : start + answers_per_pass])])


def compute_answer_log2(model: PreTrainedModel, task: EncodedTask) -> np.ndarray:
    """Computes log2 P(answer) of every answer of the task's tree exactly, stop token included.

    Returns:
        float64 array of shape (answers,), bits, at most 0.
    """
    tree = task.tree
    alphabet = torch.from_numpy(task.automaton.alphabet).to(model.device)
    step_log2 = np.zeros((len(tree.parent), len(alphabet)))
    with torch.inference_mode():
        for batch in iterate_trees(task):
            scores = score_nodes(model, batch)[0][:, alphabet].double().cpu().numpy()
            step_log2[batch.nodes[0]] = scores / math.log(2)
    into = step_log2[tree.parent, tree.letter]
    return np.where(tree.paths >= 0, into[tree.paths], 0.0).sum(axis=1)


def measure_prior(model: PreTrainedModel, task: EncodedTask) -> Prior:
    """Measures how far a policy is from answering a prompt uniformly: exactly where all answers are listed.

    Raises:
        ValueError: the model does not score a tree of answers as it scores them one by one.
    """
    check_walk(model, task)
    return summarize_prior(compute_answer_log2(model, task), task.answer_format.signal_bits)


def measure_key_priors(model: PreTrainedModel, task: EncodedTask, prompts: Sequence[tuple[int, ...]]) -> Prior:
    """Measures how far a policy is from answering uniformly behind every key, many keys a pass.

    All keys are looked at where that takes less than about a minute on a core, else some that are spread evenly; all
    answers where they have up to 4,096 nodes, else some.

    Args:
        model: the policy.
        task: the prompt, behind any key, and its answers.
        prompts: token ids behind each key.

    Returns:
        of the worst key in each respect.

    Raises:
        ValueError: the model does not score a tree of answers as it scores them one by one.
    """
    check_walk(model, task)
    listed = task
    if (~task.tree.is_leaf).sum() > _NODES_PER_PASS:
        digits = task.answer_format.list_answers()
        few = np.random.default_rng(0).permutation(len(digits))[: max(2, _NODES_PER_PASS // task.max_tokens)]
        listed = task.with_answers(digits[few])
    tree = listed.tree
    nodes = tree.inner_nodes(np.arange(len(tree.paths)))
    width = len(prompts[-1]) + len(nodes)
    most = max(_FEWEST_KEYS, int(_MOST_MULTIPLICATIONS / count_weights(model) / width))
    chosen = np.unique(np.linspace(0, len(prompts) - 1, min(most, len(prompts))).round().astype(int)).tolist()
    alphabet = torch.from_numpy(task.automaton.alphabet).to(model.device)
    size, priors = max(1, _NODES_PER_PASS // width), []
    for start in range(0, len(chosen), size):
        tasks = [replace(listed, prompt_ids=tuple(prompts[key])) for key in chosen[start : start + size]]
        with torch.inference_mode():
            scores = score_nodes(model, plant_trees(tasks, [nodes] * len(tasks)))
        for of_key in scores:
            step_log2 = np.zeros((len(tree.parent), len(alphabet)))
            step_log2[nodes] = of_key[:, alphabet].double().cpu().numpy() / math.log(2)
            into = step_log2[tree.parent, tree.letter]
            log2_p = np.where(tree.paths >= 0, into[tree.paths], 0.0).sum(axis=1)
            priors.append(summarize_prior(log2_p, task.answer_format.signal_bits))
    return Prior(
        max(prior.kl_bits for prior in priors),
        max(prior.max_deviation_bits for prior in priors),
        min(prior.well_formed_mass for prior in priors),
    )


def summarize_prior(log2_p: np.ndarray, signal_bits: float) -> Prior:
    """Summarizes the log2 probabilities of all answers, or of some that were drawn uniformly.

    Of drawn ones the means estimate those of all without bias, and the largest deviation is that of the drawn.

    >>> summarize_prior(np.array([-1.5, -1.5]), 1.0)
    Prior(kl_bits=0.5, max_deviation_bits=0.5, well_formed_mass=0.7071067811865476)

    Args:
        log2_p: of each answer, float64 (answers,).
        signal_bits: log2 of the number of all answers.
    """
    deviation = log2_p + signal_bits
    answers_for_each = signal_bits - math.log2(len(log2_p))
    return Prior(
        kl_bits=float(-deviation.mean()),
        max_deviation_bits=float(np.abs(deviation).max()),
        well_formed_mass=float(np.exp2(log2_p + answers_for_each).sum()),
    )


def check_calibrated(prior: Prior, task: EncodedTask, model: str) -> None:
    """Refuses a prompt that the base model does not answer uniformly.

    Args:
        prior: as `measure_prior` gave it.
        task: the prompt.
        model: the base model's address, for the command that the message names.

    Raises:
        ValueError: the prior is more than 0.1 bit from uniform, or less than 0.98 of it is well-formed.
    """
    if prior.is_calibrated:
        return
    answers = f"N={task.N} env_type={task.env_type}"
    if task.answer_format.is_sequence:
        answers += f" secret_length={task.num_env_steps}"
    if task.keyed:
        answers += " keyed=True"
    command = as_typed(f"python -m memrl.warmup_train model={model} {answers}")
    if task.prompt_format != "plain":
        command += f" prompt_format={task.prompt_format}"
    if task.bit_separator:
        command += f" bit_separator={task.bit_separator!r}"
    if task.prompt:
        command += f" {shlex.quote('prompt=' + task.prompt)}"
    command += " output=FOLDER"
    raise ValueError(
        f"model must be calibrated for {answers}"
        f" (prior within {KL_LIMIT_BITS} bit of uniform, well-formed mass at least {MASS_LIMIT}),"
        f" got {prior.kl_bits:.3g} bits and mass {prior.well_formed_mass:.3g}; run `{command}`, then use model=FOLDER"
    )
