"""Probes: linear readers that keep a base model's states apart while it learns to answer uniformly.

Uniform answers alone ask nothing of the hidden states, and the warm-up would let them all become one vector. A
low-rank adapter could then not raise one bit's probability and lower the next one's, as it can in a model that was
trained on text. So, during the warm-up, linear readers of the last hidden state must tell how many tokens of the
answer are written, which were the last few, and each digit of the prompt's key. They are dropped afterwards; the model
keeps the states that made them right.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from memrl.limits import MOST_KEYS
from memrl.policy.base_model import EncodedTask
from memrl.policy.head import find_head
from memrl.policy.tree_pass import TreeBatch

_DEPTHS = 256
_LAGS = 6
_KEY_DIGITS = len(str(MOST_KEYS - 1))


class Probes(nn.Module):
    """Linear readers of a model's last hidden state: depth in the answer, its last six tokens, the key's digits.

    Args:
        model: the model; every forward pass of its head from now on is watched.
        seed: draws the readers' start.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__()
        head = find_head(model)
        vocabulary, width = head.weight.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.depth = nn.Linear(width, _DEPTHS, bias=False)
            self.lags = nn.ModuleList([nn.Linear(width, vocabulary, bias=False) for _ in range(_LAGS)])
            self.digits = nn.ModuleList([nn.Linear(width, vocabulary, bias=False) for _ in range(_KEY_DIGITS)])
        self._hidden: Tensor | None = None
        self._watch = head.register_forward_pre_hook(self._see)

    def _see(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def close(self) -> None:
        """Stops watching the model."""
        self._watch.remove()

    def compute_loss(self, tasks: Sequence[EncodedTask], batch: TreeBatch) -> Tensor:
        """The sum of the readers' cross-entropies on what the model has just been given, nats, each a mean over nodes.

        Args:
            tasks: prompts.
            batch: their nodes, as the model saw them.
        """
        assert self._hidden is not None, "the model must have seen the batch"
        states = torch.cat([self._hidden[row, torch.from_numpy(each)] for row, each in enumerate(batch.columns)])
        pairs = list(zip(tasks, batch.nodes, strict=True))
        depth = np.concatenate([task.tree.depth[nodes] for task, nodes in pairs])
        row = np.repeat(np.arange(len(pairs)), [len(nodes) for _, nodes in pairs])
        losses = [_read(self.depth, states, np.minimum(depth, _DEPTHS - 1), row, depth >= 0)]
        for lag, reader in enumerate(self.lags):
            tokens = np.concatenate([_find_tokens(task, nodes, lag) for task, nodes in pairs])
            losses.append(_read(reader, states, tokens, row, tokens >= 0))
        written = np.array([_find_key(task) for task in tasks])[row]
        for place, reader in enumerate(self.digits):
            losses.append(_read(reader, states, written[:, place], row, written[:, place] >= 0))
        return torch.stack(losses).sum()


def _read(reader: nn.Module, states: Tensor, targets: np.ndarray, row: np.ndarray, counts: np.ndarray) -> Tensor:
    """The cross-entropy of one reader, averaged over the nodes of each row that count, and then over rows."""
    if not counts.any():
        return states.new_zeros(())
    nodes = np.flatnonzero(counts)
    share = 1.0 / np.bincount(row[nodes], minlength=row.max() + 1)[row[nodes]] / (row.max() + 1)
    picked = torch.from_numpy(nodes).to(states.device)
    errors = F.cross_entropy(
        reader(states[picked]), torch.from_numpy(targets[nodes]).to(states.device), reduction="none"
    )
    return torch.from_numpy(share).to(errors) @ errors


def _find_tokens(task: EncodedTask, nodes: np.ndarray, lag: int) -> np.ndarray:
    """The token written `lag` tokens before the last one of each node, -1 where there is none; int64 (nodes,)."""
    depth = task.tree.depth[nodes]
    before = task.tree.ancestors[nodes, np.maximum(depth - lag, 0)]
    return np.where(depth > lag, task.tree.token[before], -1)


def _find_key(task: EncodedTask) -> np.ndarray:
    """Token ids of a prompt's key from its first digit on, then the blank's; -1 everywhere where it has none."""
    key = np.full(_KEY_DIGITS, -1)
    if task.keyed:
        blank = task.tokenizer.convert_tokens_to_ids(" ")
        end = task.prompt_ids.index(blank)
        key[:] = blank
        key[: end - 1] = task.prompt_ids[1:end]
    return key
