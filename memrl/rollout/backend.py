"""What a sampler of episodes outside the learner's process takes and gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class SampleRequest:
    """Episodes asked of one cell's policy.

    Attributes:
        cell_id: whose policy.
        adapter: the adapter's tensors under PEFT's names, sliced to the true rank.
        adapter_config: PEFT's adapter_config.json as a dict.
        adapter_version: updates that made this adapter; comes back with the episodes.
        prompt_ids: token ids of the prompt.
        stop_token_ids: tokens that end an answer (kept as its last token).
        max_tokens: most tokens of an answer, stop token included.
        num_episodes: episodes to sample, at temperature 1 from the raw distribution.
        seed: seeds the sampler for this request.
    """

    cell_id: str
    adapter: dict[str, np.ndarray]
    adapter_config: dict[str, object]
    adapter_version: int
    prompt_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    max_tokens: int
    num_episodes: int
    seed: int


@dataclass(frozen=True)
class SampledEpisodes:
    """Episodes of one request, in no particular order.

    Attributes:
        cell_id: whose policy sampled them.
        adapter_version: the version that sampled them, as the request gave it.
        tokens: sampled token ids, padded with -1.
        rollout_logprobs: the sampler's own log-probability of each sampled token, nats, 0 at padding.
    """

    cell_id: str
    adapter_version: int
    tokens: Int[np.ndarray, "episode token"]
    rollout_logprobs: Float[np.ndarray, "episode token"]


@runtime_checkable
class RolloutBackend(Protocol):
    """Samples episodes for many cells at once."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[SampledEpisodes]:
        """Samples every request, in order; blocks until all are done."""
        ...
