"""Room in the head: how sure a policy can become of one symbol against another.

The final norm bounds the head's input x = g ⊙ h, |h| = √d, so no adapter takes the log-odds of two tokens beyond
|(w_a − w_b) ⊙ g| √d. Tokens that are always equally likely, such as 8 and 9, would get rows that are nearly one. So the
rows of the answers' tokens are fitted on the model's own states, where they must leave that room and keep the answers
uniform.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.head import TreeStates, find_head, read_states
from memrl.policy.keys import draw_keys

ROOM = 9.0
"""Log-odds, nats, that any digit can come to have over another."""

_STEPS = 1000
_RATE = 0.003
_ROOM_WEIGHT = 0.02
_RATIO_WEIGHT = 0.1
_KEYS = 6
_TOKENS = 600
_FEWEST = 4


def widen_head(model: PreTrainedModel, tasks: Sequence[EncodedTask], seed: int) -> None:
    """Fits the head's rows of the answers' tokens, so that each two of them, stop tokens aside, have `ROOM` nats.

    Args:
        model: a model whose last layer before its head is a norm with weights; changed in place.
        tasks: prompts whose answers stay uniform.
        seed: draws the answers and the keys whose states are looked at.
    """
    rng = np.random.default_rng(seed)
    states = read_states(model, [each for task in tasks for each in _draw(task, rng)])
    head, scale = find_head(model), _final_scale(model)
    rows = head.weight.detach()[states.tokens].clone().requires_grad_()
    places = torch.searchsorted(states.tokens, find_digits(tasks))
    apart = ~torch.eye(len(places), dtype=torch.bool)
    optimizer = torch.optim.Adam([rows], lr=_RATE)
    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = _RATE * 0.5 * (1.0 + math.cos(math.pi * step / _STEPS))
        reach = torch.cdist(rows[places] * scale, rows[places] * scale)[apart]
        loss = _compute_divergence(states, rows) + _ROOM_WEIGHT * (ROOM - reach).relu().square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        head.weight[states.tokens] = rows.detach()


def find_digits(tasks: Sequence[EncodedTask]) -> Tensor:
    """Ids of all tokens of some prompts' answers, stop tokens aside; ascending, int64 (digits,)."""
    tokens = {int(token) for task in tasks for token in task.automaton.alphabet if token != task.stop_token_id}
    return torch.tensor(sorted(tokens))


def _final_scale(model: PreTrainedModel) -> Tensor:
    decoder: Any = model.get_decoder()
    weight: Tensor = decoder.norm.weight.detach()
    return weight * math.sqrt(len(weight))


def _draw(task: EncodedTask, rng: np.random.Generator) -> list[EncodedTask]:
    """The task behind some keys, where it is keyed, with some of its answers."""
    keyed = [task.with_key(key) for key in draw_keys(rng, _KEYS).tolist()] if task.keyed else [task]
    answers = task.answer_format
    count = max(_FEWEST, _TOKENS // task.max_tokens) // (3 if task.keyed else 1) + 1
    if answers.num_answers <= count:
        return keyed
    shape = (count, answers.num_env_steps)
    return [
        each.with_answers(
            rng.integers(answers.radix, size=shape)
            if answers.is_sequence
            else answers.digits(rng.choice(answers.num_answers, size=count, replace=False))
        )
        for each in keyed
    ]


def _compute_divergence(states: TreeStates, rows: Tensor) -> Tensor:
    """Mean over nodes of KL(uniform || policy) and the squared log-ratio, as in the warm-up."""
    allowed = torch.isfinite(states.log_p)
    logits = states.hidden @ rows.T
    log_sum = torch.logaddexp(states.rest, torch.logsumexp(logits, dim=1))
    ratio = torch.where(allowed, logits - log_sum[:, None] - states.log_p, 0.0)
    squared = (ratio.square() / allowed.sum(dim=1, keepdim=True)).sum(dim=1)
    return (_RATIO_WEIGHT * squared - (states.log_p.exp() * ratio).sum(dim=1)).mean()
