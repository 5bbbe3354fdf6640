"""Refuses models that a tree of answers is no fair way to score.

Answers that share a beginning lie in one sequence, and only the attention mask keeps them apart. Layers that read a
sequence as it lies, such as recurrences and convolutions, and windows that look back over fewer tokens than there are,
give other numbers there than in a sequence of one answer.
"""

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.tree_pass import plant_trees, score_nodes

_LIMIT_BITS = 1e-3
_HALF_LIMIT_BITS = 0.5
"""In half precision, where 54 answers of a 135 M model were up to 0.31 bits off in any order of sums."""


def check_walk(model: PreTrainedModel, task: EncodedTask) -> None:
    """Scores a few answers by one pass over their tree and by a pass each.

    Args:
        model: the base model.
        task: a prompt and its answers.

    Raises:
        ValueError: the two differ by more than rounding.
    """
    answers = _choose_answers(task)
    difference = float(np.abs(_score_tree(model, task, answers) - _score_plainly(model, task, answers)).max())
    limit = _HALF_LIMIT_BITS if model.dtype.itemsize < 4 else _LIMIT_BITS
    if not difference <= limit:
        raise ValueError(
            f"model must score a tree of answers as it scores each alone (within {limit:g} bits), as attention over all"
            f" tokens does, got {type(model).__name__}, {difference:.3g} bits off"
        )


def _choose_answers(task: EncodedTask) -> np.ndarray:
    """The first answer, the last, and two siblings that share as much as any, in the order of their paths."""
    paths = task.tree.paths[np.lexsort(task.tree.paths.T[::-1])]
    shared = (paths[1:] == paths[:-1]).cumprod(axis=1).sum(axis=1)
    closest = len(shared) - 1 - int(shared[::-1].argmax())
    chosen = np.unique([0, closest, closest + 1, len(paths) - 1])
    return np.lexsort(task.tree.paths.T[::-1])[chosen]


def _score_tree(model: PreTrainedModel, task: EncodedTask, answers: np.ndarray) -> np.ndarray:
    """log2 P of some answers by one pass, float64 (answers,)."""
    tree, nodes = task.tree, task.tree.inner_nodes(answers)
    with torch.inference_mode():
        logprobs = score_nodes(model, plant_trees([task], [nodes]))[0].double().cpu().numpy()
    paths = [path[path >= 0] for path in tree.paths[answers]]
    return np.array([logprobs[np.searchsorted(nodes, tree.parent[p]), tree.token[p]].sum() for p in paths]) / math.log(
        2
    )


def _score_plainly(model: PreTrainedModel, task: EncodedTask, answers: np.ndarray) -> np.ndarray:
    """The same by one pass each, without a mask."""
    scores = []
    for path in task.tree.paths[answers]:
        tokens = task.tree.token[path[path >= 0]]
        ids = torch.from_numpy(np.concatenate([task.prompt_ids, tokens])).to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, len(task.prompt_ids) - 1 : -1]
        logprobs = torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
        scores.append(logprobs[range(len(tokens)), tokens].sum() / math.log(2))
    return np.array(scores)
