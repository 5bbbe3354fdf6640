"""The roots of an update: which keys of every cell are asked, by which prompts, and what is hidden behind each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int

from memrl.config import TrainConfig
from memrl.task.answer_format import key_digits

Prompts = Sequence[Sequence[int] | np.ndarray]
"""Token ids of each key's prompt."""

_KEY_STREAM = 0x3E75
"""Keeps the order of the keys apart from every other stream of the same cell."""


@dataclass(frozen=True)
class CellKeys:
    """The keys of a cell, or the one prompt of a cell without.

    Attributes:
        prompts: the prompt of each.
        secrets: the digits of the secret of each, int (keys, env_steps).
    """

    prompts: Prompts
    secrets: np.ndarray

    @classmethod
    def of(cls, config: TrainConfig, prompts: Prompts) -> "CellKeys":
        """Of a cell, given its prompts."""
        assert len(prompts) == (config.num_keys or 1), "a prompt for every key"
        return cls(prompts, key_digits(config))

    def __len__(self) -> int:
        return len(self.secrets)


@dataclass(frozen=True)
class Roots:
    """Prompts that a pack is asked, each with its secret; by cell.

    Attributes:
        cell: the cell of each, ascending; int64 (roots,).
        key: the key of each, 0 where the cell has none; int64 (roots,).
        secrets: digits of each secret, padded with -1; int64 (roots, env_steps).
        prompts: token ids of each prompt.
        num_episodes: episodes of each group of each root, int64 (roots, groups).
    """

    cell: np.ndarray
    key: np.ndarray
    secrets: np.ndarray
    prompts: Prompts
    num_episodes: np.ndarray

    @classmethod
    def choose(
        cls, keys: Sequence[CellKeys], chosen: Sequence[Int[np.ndarray, "_"]], num_episodes: Int[np.ndarray, "cell _"]
    ) -> "Roots":
        """Some keys of every cell.

        Args:
            keys: of each cell.
            chosen: which of them, in this order; of some cells none, perhaps.
            num_episodes: episodes of each group of one root of each cell.
        """
        counts = [len(of_cell) for of_cell in chosen]
        cell, first = np.repeat(np.arange(len(keys)), counts), np.cumsum([0, *counts])
        secrets = np.full((first[-1], max(of_cell.secrets.shape[1] for of_cell in keys)), -1, dtype=np.int64)
        for start, of_cell, some in zip(first, keys, chosen, strict=False):
            secrets[start : start + len(some), : of_cell.secrets.shape[1]] = of_cell.secrets[some]
        prompts = [of_cell.prompts[key] for of_cell, some in zip(keys, chosen, strict=True) for key in some]
        return cls(cell, np.concatenate(chosen).astype(np.int64), secrets, prompts, num_episodes[cell])

    @cached_property
    def siblings(self) -> Int[np.ndarray, "root"]:
        """How many roots the cell of each has."""
        return np.bincount(self.cell)[self.cell]

    @cached_property
    def prompt_tokens(self) -> Int[np.ndarray, "root"]:
        """Tokens of each prompt."""
        return np.array([len(prompt) for prompt in self.prompts])


def draw_keys(config: TrainConfig, batches: int) -> Int[np.ndarray, "drawn"]:
    """The keys that a cell is asked after so many batches: every one once before any twice, in an order of its own.

    >>> config = TrainConfig(num_keys=6, group_size=2, batch_size=8)
    >>> sorted(np.concatenate([draw_keys(config, batches) for batches in range(3)]).tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """
    if config.num_keys is None:
        return np.zeros(1, dtype=np.int64)
    first = batches * config.prompts_per_update
    turns, place = np.divmod(np.arange(first, first + config.prompts_per_update), config.num_keys)
    drawn = [
        _shuffle_keys(config.cell_id, config.num_keys, int(turn))[place[turns == turn]] for turn in np.unique(turns)
    ]
    return np.concatenate(drawn).astype(np.int64)


@lru_cache(maxsize=128)
def _shuffle_keys(cell_id: str, num_keys: int, turn: int) -> np.ndarray:
    stream = np.random.default_rng(np.random.SeedSequence([_KEY_STREAM, int(cell_id, 16), turn]))
    return stream.permutation(num_keys).astype(np.int32)
