"""Decorrelation: keeps the places of one answer apart inside a base model while it learns to answer uniformly.

A layer's adapter turns its input x by B A x, so what an update teaches at one place reaches another by the cosine of
their inputs. While the warm-up runs, the inputs of every linear layer that adapters go on are watched, and of the
pairs of places of one answer the mean squared cosine is added to the loss, and the mean cosine where it is positive.
Pairs of different answers do not count: what tells answers apart leaves the places of one as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from memrl.policy.adapter_pack import find_linears
from memrl.policy.tree_pass import TreeBatch

_ROWS = 12
"""Prompts of a batch whose places are compared; they are drawn, and comparing all takes longer than the model."""


class Decorrelation:
    """Watches the inputs of a model's linear layers, and says how alike they are at the places of one answer.

    Args:
        model: the model; every forward pass from now on is watched.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._seen: dict[int, Tensor] = {}
        self._watches = [layer.register_forward_pre_hook(self._see) for layer in find_linears(model).values()]

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Layers that read the same input, such as queries, keys and values, count once; measurements do not.
        if torch.is_grad_enabled():
            self._seen[id(inputs[0])] = inputs[0]

    def close(self) -> None:
        """Stops watching the model."""
        for watch in self._watches:
            watch.remove()

    def compute_loss(self, batch: TreeBatch) -> Tensor:
        """Mean squared cosine plus the positive part of the mean cosine, over layers and prompts; scalar, 0 … 2.

        Args:
            batch: what the model has just been given.
        """
        pairs = _find_pairs(batch).to(next(iter(self._seen.values())).device)
        counts = pairs.sum(dim=(1, 2))
        rows = torch.nonzero(counts)[:_ROWS, 0]
        weight = pairs[rows] / counts[rows, None, None] / max(1, len(rows))
        losses = []
        for x in self._seen.values():
            unit = F.normalize(x[rows], dim=-1)
            cosine = unit @ unit.transpose(1, 2)
            weighted = weight * cosine
            squared, mean = (weighted * cosine).sum(dim=(1, 2)), weighted.sum(dim=(1, 2))
            losses.append((squared + mean.relu()).sum())
        self._seen.clear()
        return torch.stack(losses).mean()


def _find_pairs(batch: TreeBatch) -> Tensor:
    """Which columns are two places of one answer, the first one before the second: bool (rows, width, width)."""
    visible = torch.from_numpy(batch.rows.mask[:, 0] == 0)
    is_place = torch.zeros(visible.shape[:2], dtype=torch.bool)
    for row, columns in enumerate(batch.columns):
        is_place[row, torch.from_numpy(columns)] = True
    different = ~torch.eye(visible.shape[1], dtype=torch.bool)
    return visible & is_place[:, :, None] & is_place[:, None, :] & different
