"""One forward pass over prompts and trees of answers, with gradient: what calibration and the warm-up look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.token_tree import PaddedRows, pad_rows


@dataclass(frozen=True)
class TreeBatch:
    """Several prompts, each with some inner nodes of its tree of answers, as one batch of sequences.

    One forward pass gives the next-token distribution at every node, and shares all that paths have in common.

    Attributes:
        rows: each prompt, then its nodes but the root; a node follows its parent, the root is the prompt's last token.
        nodes: inner nodes of each sequence, the root first.
        columns: where the distribution after each node is read, as `nodes`.
    """

    rows: PaddedRows
    nodes: list[np.ndarray]
    columns: list[np.ndarray]


def plant_trees(tasks: Sequence[EncodedTask], nodes: list[np.ndarray]) -> TreeBatch:
    """Lays prompts and nodes of their trees out as one batch.

    Args:
        tasks: one per sequence.
        nodes: inner nodes of each sequence, closed under parents, the root first.
    """
    token, parent, position, bounds, columns = [], [], [], [0], []
    for task, chosen in zip(tasks, nodes, strict=True):
        tree, prompt, below = task.tree, len(task.prompt_ids), chosen[1:]
        token += [task.prompt_ids, tree.token[below]]
        place = np.searchsorted(chosen, tree.parent[below]) + prompt - 1
        follows = np.concatenate([np.arange(-1, prompt - 1), place])
        parent.append(np.where(follows >= 0, bounds[-1] + follows, -1))
        position += [np.arange(prompt), prompt - 1 + tree.depth[below]]
        columns.append(np.arange(prompt - 1, prompt + len(below)))
        bounds.append(bounds[-1] + len(follows))
    rows = pad_rows(np.concatenate(token), np.concatenate(parent), np.concatenate(position), np.array([bounds]))
    return TreeBatch(rows, nodes, columns)


def run_trees(model: PreTrainedModel, batch: TreeBatch) -> Tensor:
    """Feeds a batch to a model, with gradient; returns the logits after every token, (rows, length, vocabulary)."""
    device, dtype = model.device, model.dtype
    output = model(
        input_ids=torch.from_numpy(batch.rows.token).to(device),
        position_ids=torch.from_numpy(batch.rows.position).to(device),
        attention_mask=torch.from_numpy(batch.rows.mask).to(device, dtype),
        use_cache=False,
    )
    return output.logits


def score_nodes(model: PreTrainedModel, batch: TreeBatch) -> list[Tensor]:
    """Computes the policy's next-token distribution at every node of a batch, with gradient.

    Returns:
        For each row, natural log-probabilities over the vocabulary, (nodes, vocabulary), at least float32.
    """
    logits = run_trees(model, batch)
    wide = torch.promote_types(logits.dtype, torch.float32)
    columns = [torch.from_numpy(each).to(logits.device) for each in batch.columns]
    return [torch.log_softmax(logits[row, each].to(wide), dim=-1) for row, each in enumerate(columns)]
