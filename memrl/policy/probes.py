"""Probes: linear readers that keep a base model's states apart while it learns to answer uniformly.

Uniform answers alone ask nothing of the hidden states, and the warm-up would let them all become one vector. A
low-rank adapter could then not raise one bit's probability and lower the next one's, as it can in a model that was
trained on text. So, during the warm-up, linear readers of the last hidden state must tell how many tokens of the
answer are written, and which were the last few. They are dropped afterwards; the model keeps the states that made
them right.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from memrl.policy.base_model import EncodedTask
from memrl.policy.tree_pass import TreeBatch

_DEPTHS = 32
_LAGS = 6


class Probes(nn.Module):
    """Linear readers of a model's last hidden state: the depth in the answer, and each of the last six tokens.

    Args:
        model: the model; every forward pass of its head from now on is watched.
        seed: draws the readers' start.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__()
        head: Any = model.get_output_embeddings()
        vocabulary, width = head.weight.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.depth = nn.Linear(width, _DEPTHS, bias=False)
            self.lags = nn.ModuleList([nn.Linear(width, vocabulary, bias=False) for _ in range(_LAGS)])
        self._hidden: Tensor | None = None
        self._watch = head.register_forward_pre_hook(self._see)

    def _see(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def close(self) -> None:
        """Stops watching the model."""
        self._watch.remove()

    def compute_loss(self, tasks: list[EncodedTask], batch: TreeBatch) -> Tensor:
        """The readers' cross-entropy on the batch that the model has just been given, nats, averaged over prompts.

        Args:
            tasks: prompts.
            batch: their nodes, as the model saw them.
        """
        assert self._hidden is not None, "the model must have seen the batch"
        losses = []
        for row, (task, nodes, columns) in enumerate(zip(tasks, batch.nodes, batch.columns, strict=True)):
            states, depth = self._hidden[row, torch.from_numpy(columns)], task.tree.depth[nodes]
            loss = F.cross_entropy(self.depth(states), torch.from_numpy(depth))
            for lag, reader in enumerate(self.lags):
                written = np.flatnonzero(depth > lag)
                if len(written):
                    token = task.tree.token[task.tree.ancestors[nodes[written], depth[written] - lag]]
                    loss = loss + F.cross_entropy(reader(states[torch.from_numpy(written)]), torch.from_numpy(token))
            losses.append(loss)
        return torch.stack(losses).mean()
