"""What may follow each row of a walk: log-probabilities of a few tokens, out of a distribution over a whole vocabulary.

A vocabulary is often a thousand times as wide as the alphabet of the answers. Where the head is one product and the
vocabulary is wide, no graph goes through it: of the logits stay the exponentials, whose product with the head's weights
is the gradient. Where a level's logits are many, they are computed some rows at a time, the alphabet's columns and the
sums are read off, and the rest is let go; the backward pass computes them again. Both do so for those rows alone that
have a gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_MOST_KEPT = 2**26
"""Log-probabilities of a walk that stay until the update: 256 MiB of float32. Those above cost a second pass."""

_MOST_NUMBERS = 2**24
"""Log-probabilities that are computed at once where they do not stay."""

_COPIED_NUMBERS = 2**22
"""Exponentials that are copied at once on the way back: 16 MiB of float32."""

_WIDE = 1024
"""A vocabulary from which on a graph through the head costs more than it spares."""

_CACHED_NUMBERS = 2**18
"""Logits that go through their exponential at once: about what a core's cache holds."""


@dataclass(frozen=True)
class Head:
    """The end of a network, which scores hidden states.

    Attributes:
        score: hidden states (rows, d) to logits (rows, vocabulary), with gradient.
        vocabulary: how many tokens it scores.
        weight: (vocabulary, d) where the logits are the states times this, and nothing else; None for any other head.
    """

    score: Callable[[Tensor], Tensor]
    vocabulary: int
    weight: Tensor | None = None


class NextTokens(Protocol):
    """The distributions after some rows; `score` comes first and says which tokens matter."""

    def score(self, alphabet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads some tokens' probabilities.

        Args:
            alphabet: token ids, ascending; int64 (A,).

        Returns:
            the probability of each of them after each row, float64 (rows, A), and that of all tokens together,
            which is 1 up to rounding, float64 (rows,).
        """
        ...

    def describe_row(self, row: int) -> np.ndarray:
        """The probability of every token after one row, float64 (vocabulary,)."""
        ...

    def pick(self, row: np.ndarray, token: np.ndarray) -> Tensor:
        """Log-probabilities of some tokens, nats, with gradient.

        Args:
            row: after which each stands, int64 (tokens,).
            token: token ids, each of the alphabet or after a row that `describe_row` has read; int64 (tokens,).
        """
        ...


class NextTokensReader:
    """Reads what may follow the rows of a walk, level by level; the levels share the room for what stays.

    Args:
        head: scores last hidden states.
    """

    def __init__(self, head: Head) -> None:
        self._head, self._room = head, _MOST_KEPT

    def start(self) -> None:
        """Begins a walk."""
        self._room = _MOST_KEPT

    def read(self, states: Tensor) -> NextTokens:
        """The distributions after rows whose last hidden states are given, (rows, d), in a graph."""
        head, numbers = self._head, len(states) * self._head.vocabulary
        if numbers > self._room:
            return PassingDistributions(states, head)
        self._room -= numbers
        if head.weight is not None and head.vocabulary >= _WIDE:
            return LinearDistributions(states, head.weight)
        return KeptDistributions(_compute_logprobs(states, head))


def _compute_logprobs(states: Tensor, head: Head) -> Tensor:
    logits = head.score(states)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def _read_columns(logprobs: Tensor, columns: Tensor) -> tuple[np.ndarray, np.ndarray]:
    probabilities = logprobs.exp()
    total = probabilities.sum(-1, dtype=torch.float64).cpu().numpy()
    return probabilities.index_select(1, columns).double().cpu().numpy(), total


class KeptDistributions:
    """Distributions that stay as they are.

    Args:
        logprobs: (rows, vocabulary), in a graph.
    """

    def __init__(self, logprobs: Tensor) -> None:
        self._logprobs = logprobs

    def score(self, alphabet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See NextTokens.score."""
        return _read_columns(self._logprobs.detach(), torch.from_numpy(alphabet).to(self._logprobs.device))

    def describe_row(self, row: int) -> np.ndarray:
        """See NextTokens.describe_row."""
        return self._logprobs[row].detach().double().exp().cpu().numpy()

    def pick(self, row: np.ndarray, token: np.ndarray) -> Tensor:
        """See NextTokens.pick."""
        device = self._logprobs.device
        return self._logprobs[torch.from_numpy(row).to(device), torch.from_numpy(token).to(device)]


class LinearDistributions:
    """Distributions behind a head that is one product.

    Args:
        states: the last hidden states, (rows, d), in a graph.
        weight: of the head, (vocabulary, d).
    """

    def __init__(self, states: Tensor, weight: Tensor) -> None:
        self._states, self._weight = states, weight

    def score(self, alphabet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See NextTokens.score."""
        columns = torch.from_numpy(alphabet).to(self._weight.device)
        with torch.no_grad():
            self._kept = _Exponentials(self._states, self._weight)
            logprobs = self._kept.read(columns)
        self._alphabet = alphabet
        rows = torch.arange(len(logprobs), device=columns.device)
        self._logprobs = _Logprobs.apply(self._states, self._kept, rows, columns, logprobs)
        return logprobs.double().exp().cpu().numpy(), np.ones(len(logprobs))

    def describe_row(self, row: int) -> np.ndarray:
        """See NextTokens.describe_row."""
        return self._kept.describe_row(row).cpu().numpy()

    def pick(self, row: np.ndarray, token: np.ndarray) -> Tensor:
        """See NextTokens.pick."""
        device = self._states.device
        column = np.minimum(np.searchsorted(self._alphabet, token), len(self._alphabet) - 1)
        values = self._logprobs[torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)]
        rare = np.flatnonzero(self._alphabet[column] != token)
        if not len(rare):
            return values
        places = torch.from_numpy(rare).to(device)
        return values.index_put((places,), torch.cat([self._pick_rare(int(row[i]), int(token[i])) for i in rare]))

    def _pick_rare(self, row: int, token: int) -> Tensor:
        rows, tokens = (torch.tensor([index], device=self._states.device) for index in (row, token))
        return _Logprobs.apply(self._states, self._kept, rows, tokens, self._kept.read_one(rows, tokens)[None])[0]


class _Exponentials:
    """e^(z - max z) of logits z = W h, which stay for the backward pass.

    With P = softmax(z), the gradient of sum_a s_a log P(a) by h is

        sum_a s_a w_a - (sum_a s_a) sum_v P(v) w_v.

    What is read of it lies in the graph, and it does not know of that: otherwise the two would keep each other.

    Args:
        states: h, (rows, d).
        weight: W, (vocabulary, d).
    """

    def __init__(self, states: Tensor, weight: Tensor) -> None:
        self._states, self._weight = states.detach(), weight
        self._values = self._states @ weight.T

    def read(self, columns: Tensor) -> Tensor:
        """The log-probabilities of some tokens, (rows, tokens); comes first, and turns the logits to exponentials."""
        logits, read = self._values.index_select(1, columns), []
        for some in self._values.split(max(1, _CACHED_NUMBERS // len(self._weight))):
            peak = some.amax(1, keepdim=True)
            read.append(torch.cat([peak, some.sub_(peak).exp_().sum(1, keepdim=True)], dim=1))
        peak, self._sums = torch.cat(read).split(1, dim=1)
        return logits - peak - self._sums.log()

    def read_one(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """The log-probability of any token after each row, (rows,)."""
        return self._values[rows, tokens].log() - self._sums[rows, 0].log()

    def describe_row(self, row: int) -> Tensor:
        """The probability of every token after one row, float64 (vocabulary,)."""
        return self._values[row].double() / self._sums[row].double()

    def pull_back(self, rows: Tensor, tokens: Tensor, slopes: Tensor) -> Tensor:
        """The gradient of the states, given that of the log-probabilities of some tokens after some rows."""
        grad, total = torch.zeros_like(self._states), slopes.sum(1)
        grad[rows] = slopes @ self._weight[tokens]
        for places in torch.nonzero(total)[:, 0].split(max(1, _COPIED_NUMBERS // len(self._weight))):
            some = rows[places]
            factor = total[places] / self._sums[some, 0]
            grad[some] -= factor[:, None] * (self._values[some] @ self._weight)
        return grad


class _Logprobs(torch.autograd.Function):
    """Log-probabilities that were read before, (rows, tokens); the backward pass is that of _Exponentials."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, source: _Exponentials, rows: Tensor, tokens: Tensor, values: Tensor
    ) -> Tensor:
        ctx.source, ctx.read = source, (rows, tokens)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.source.pull_back(*ctx.read, slopes), None, None, None, None


class PassingDistributions:
    """Distributions that are computed some rows at a time and let go.

    Args:
        states: the last hidden states, (rows, d), in a graph.
        head: scores them.
    """

    def __init__(self, states: Tensor, head: Head) -> None:
        self._states, self._head = states, head
        self._most_rows = max(1, _MOST_NUMBERS // head.vocabulary)
        self._rare: dict[int, Tensor] = {}

    def _compute(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields some of the rows, a leaf of their states, and the log-probabilities after them."""
        for some in rows.split(self._most_rows):
            leaf = self._states.detach()[some].requires_grad_()
            yield some, leaf, _compute_logprobs(leaf, self._head)

    @torch.no_grad()
    def score(self, alphabet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See NextTokens.score."""
        columns = torch.from_numpy(alphabet).to(self._states.device)
        self._alphabet, scored, read = alphabet, [], []
        for _, _, logprobs in self._compute(torch.arange(len(self._states), device=columns.device)):
            scored.append(logprobs.index_select(1, columns))
            read.append(_read_columns(logprobs, columns))
        self._scored = torch.cat(scored)
        probabilities, total = map(np.concatenate, zip(*read, strict=True))
        return probabilities, total

    @torch.no_grad()
    def describe_row(self, row: int) -> np.ndarray:
        """See NextTokens.describe_row."""
        ((_, _, logprobs),) = self._compute(torch.tensor([row], device=self._states.device))
        self._rare[row] = logprobs[0]
        return logprobs[0].double().exp().cpu().numpy()

    def pick(self, row: np.ndarray, token: np.ndarray) -> Tensor:
        """See NextTokens.pick."""
        device = self._states.device
        column = np.minimum(np.searchsorted(self._alphabet, token), len(self._alphabet) - 1)
        values = self._scored[torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)]
        for place in np.nonzero(self._alphabet[column] != token)[0]:
            values[place] = self._rare[int(row[place])][int(token[place])]
        return _Pick.apply(self._states, self, row, token, values)

    def pull_back(self, row: Tensor, token: Tensor, slopes: Tensor) -> Tensor:
        """The gradient of the states, given that of log-probabilities that were picked."""
        grad = torch.zeros_like(self._states)
        with torch.enable_grad():
            for rows, leaf, logprobs in self._compute(torch.unique(row[slopes != 0])):
                place = torch.searchsorted(rows, row).clamp(max=len(rows) - 1)
                inside = rows[place] == row
                wanted = torch.zeros_like(logprobs)
                wanted[place[inside], token[inside]] = slopes[inside]
                (grad[rows],) = torch.autograd.grad(logprobs, leaf, wanted)
        return grad


class _Pick(torch.autograd.Function):
    """Values that were read before; the backward pass goes through the head to the states."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, source: PassingDistributions, row: np.ndarray, token: np.ndarray, values: Tensor
    ) -> Tensor:
        ctx.source, ctx.picked = source, [torch.from_numpy(each).to(states.device) for each in (row, token)]
        return values

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.source.pull_back(*ctx.picked, slopes), None, None, None, None
