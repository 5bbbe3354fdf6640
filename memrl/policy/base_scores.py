"""What the base model itself would say at the nodes of a walk, each computed once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

_ROWS_PER_PASS = 256
_MOST_KEPT = 1 << 16
"""Nodes beyond which all are forgotten: trees that are walked for long may have no end of them."""

_Beginning = tuple[int, ...]


class BaseScores:
    """Next-token distributions of a base model after prompts and beginnings of answers.

    Args:
        model: the base model, without adapters.
        alphabet: token ids that occur in answers, int64 (A,).
    """

    def __init__(self, model: PreTrainedModel, alphabet: np.ndarray) -> None:
        self._model, self._alphabet = model, torch.from_numpy(alphabet).to(model.device)
        self._kept: dict[_Beginning, Tensor] = {}

    def score(self, beginnings: Sequence[_Beginning]) -> Tensor:
        """Logits of the answers' letters after each beginning, (beginnings, A); at least float32, without gradient.

        Args:
            beginnings: token ids, each those of a prompt and of the beginning of an answer.
        """
        if len(self._kept) > _MOST_KEPT:
            self._kept.clear()
        new = [beginning for beginning in dict.fromkeys(beginnings) if beginning not in self._kept]
        for start in range(0, len(new), _ROWS_PER_PASS):
            rows = new[start : start + _ROWS_PER_PASS]
            self._kept.update(zip(rows, self._compute(rows), strict=True))
        return torch.stack([self._kept[beginning] for beginning in beginnings])

    @torch.no_grad()
    def _compute(self, rows: Sequence[_Beginning]) -> Tensor:
        # Padding follows what counts, so that causal attention never sees it.
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._model.device)
        logits = self._model(input_ids=ids, use_cache=False).logits
        last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        picked = logits[torch.arange(len(rows), device=ids.device), last][:, self._alphabet]
        return picked.to(torch.promote_types(picked.dtype, torch.float32))
