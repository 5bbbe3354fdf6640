"""Calibration by the head alone: uniform answers, with every hidden state as the model has it.

A warm-up of the body makes the features of different places alike, and what is measured afterwards is the warm-up. So
the head gets weights of its own, and only its rows of the answers' tokens are fitted, on the hidden states of the
answer tree, which are computed once. All other logits stay, so that one log-sum of them is kept per node.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.calibration import iterate_trees
from memrl.policy.tree_pass import TreeBatch, run_trees


@dataclass(frozen=True)
class HeadRecipe:
    """How to fit the head's rows.

    Attributes:
        steps: the most optimizer steps, each over every node.
        learning_rate: Adam's peak, as a share of the rows' root mean square; it falls to zero along a half cosine.
        ratio_weight: weight of the squared log-ratio beside the KL.
    """

    steps: int = 3000
    learning_rate: float = 0.05
    ratio_weight: float = 0.1


@dataclass(frozen=True, eq=False)
class TreeStates:
    """What the head sees at every inner node of some prompts' answer trees, and what it should say.

    Attributes:
        tokens: ids of all tokens that occur in answers, ascending; int64 (tokens,).
        hidden: the head's input, (nodes, width), float32 or float64.
        rest: log-sum of the logits of all other tokens, (nodes,).
        log_p: natural logarithm of a uniform secret's next-token distribution, -inf where a token may not follow;
            (nodes, tokens).
        weight: share of a prompt's answers that pass the node, over the number of prompts; (nodes,).
    """

    tokens: Tensor
    hidden: Tensor
    rest: Tensor
    log_p: Tensor
    weight: Tensor


def untie_head(model: PreTrainedModel) -> None:
    """Gives the head weights of its own where it shares the embeddings', in the model and in what is saved of it."""
    head, embeddings = find_head(model), model.get_input_embeddings()
    if head.weight is getattr(embeddings, "weight", None):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    untied: Any = model
    for config in (untied.config, untied.config.get_text_config()):
        config.tie_word_embeddings = False
    untied.all_tied_weights_keys = {}


def read_states(
    model: PreTrainedModel,
    tasks: Sequence[EncodedTask],
    report: Callable[[int], None] = lambda nodes: None,
) -> TreeStates:
    """Runs the model over every answer tree once.

    Args:
        model: the base model.
        tasks: the prompts.
        report: told the nodes that each pass has added.
    """
    tokens = np.unique(np.concatenate([task.automaton.alphabet for task in tasks]))
    index = torch.from_numpy(tokens).to(model.device)
    parts: list[tuple[Tensor, ...]] = []
    for task in tasks:
        log_p, weight = _lay_targets(task, tokens)
        seen = np.zeros(len(weight), dtype=bool)
        for batch in iterate_trees(task):
            (nodes,), (places,) = batch.nodes, batch.columns
            new = ~seen[nodes]
            seen[nodes] = True
            hidden, logits = _run_head(model, batch, places[new])
            rest = torch.logsumexp(logits.index_fill(1, index, -math.inf), dim=1)
            targets = (torch.from_numpy(each[nodes[new]]).to(hidden) for each in (log_p, weight / len(tasks)))
            parts.append((hidden, rest, *targets))
            report(int(new.sum()))
    return TreeStates(index, *(torch.cat(column) for column in zip(*parts, strict=True)))


def _lay_targets(task: EncodedTask, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact log-probabilities of some tokens at every node, (nodes, tokens), and its share of answers, (nodes,)."""
    automaton, state = task.automaton, task.tree.state
    log_p = np.full((len(state), len(tokens)), -np.inf)
    log_p[:, np.searchsorted(tokens, automaton.alphabet)] = automaton.uniform_log2()[state] * math.log(2)
    return log_p, np.exp2(automaton.log2_answers[state] - task.answer_format.signal_bits)


def fit_head(
    model: PreTrainedModel,
    states: TreeStates,
    recipe: HeadRecipe,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Fits the head's rows of the answers' tokens, so that every prompt is answered uniformly.

    Σ_nodes weight · [ KL(p || q) + ratio_weight · mean_a (log q(a) - log p(a))² ], over the tokens a that p allows, by
    Adam on the rows.

    Args:
        model: its head is untied, and its rows are replaced.
        states: as `read_states` gave them for this model.
        recipe: how.
        report: told each step and its loss.

    Returns:
        The loss of each step, nats.
    """
    untie_head(model)
    head, shape = find_head(model), _find_shape(model)
    start = head.weight.detach()[states.tokens].to(states.hidden)
    bias = None if head.bias is None else head.bias.detach()[states.tokens].to(states.hidden)
    rows = start.clone().requires_grad_()
    allowed = torch.isfinite(states.log_p)
    target, log_p = states.log_p.exp(), torch.where(allowed, states.log_p, 0.0)
    share = allowed / allowed.sum(dim=1, keepdim=True) * recipe.ratio_weight
    rate = recipe.learning_rate * float(start.square().mean().sqrt())
    optimizer = torch.optim.Adam([rows], lr=rate, betas=(0.9, 0.99))
    losses: list[float] = []
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / recipe.steps))
        logits = shape(nn.functional.linear(states.hidden, rows, bias))
        log_sum = torch.logaddexp(states.rest, torch.logsumexp(logits, dim=1))
        ratio = logits - log_sum[:, None] - log_p
        loss = states.weight @ (share * ratio.square() - target * ratio).sum(dim=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        report(step + 1, losses[-1])
    with torch.no_grad():
        head.weight[states.tokens] = rows.detach().to(head.weight.dtype)
    return losses


def find_head(model: PreTrainedModel) -> nn.Linear:
    """A model's head.

    Raises:
        ValueError: it is not linear.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"model must have a linear head, got {type(model).__name__} (use method=lora)")
    return head


def _find_shape(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What the model makes of its head's output before it is a logit: mostly nothing, a cap or a factor in some."""
    config = model.config.get_text_config()
    cap, factor = getattr(config, "final_logit_softcapping", None), getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    if cap:
        return lambda logits: cap * torch.tanh(logits / cap)
    scale = (factor or 1.0) / (divisor or 1.0)
    return lambda logits: logits * scale


def _run_head(model: PreTrainedModel, batch: TreeBatch, places: np.ndarray) -> tuple[Tensor, Tensor]:
    """The head's input and the logits at some places of a batch of one row, at least float32."""
    seen: list[Tensor] = []
    watch = find_head(model).register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            logits = run_trees(model, batch)
    finally:
        watch.remove()
    wide = torch.promote_types(model.dtype, torch.float32)
    chosen = torch.from_numpy(places).to(model.device)
    return seen[0][0, chosen].to(wide), logits[0, chosen].to(wide)
