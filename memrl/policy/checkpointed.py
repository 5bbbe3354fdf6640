"""A Hugging Face network that keeps no activations while it samples, and computes them again for the update."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from memrl.config import TrainConfig
from memrl.policy.adapter_pack import ExpertProjection
from memrl.policy.hugging_face import HuggingFaceNetwork

_MOST_OF_FREE_MEMORY = 0.5
"""The share of the free memory that activations may take; logits, caches and what the estimate omits need some too."""


class _Checkpointed(nn.Module):
    """A decoder layer that keeps its input alone for the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return checkpoint(self.layer, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


class CheckpointedNetwork(HuggingFaceNetwork):
    """A HuggingFaceNetwork that needs memory for one layer's activations, and one more forward pass for it.

    The walk runs without a graph; its logits are leaves. For the update the whole tree goes through the model once
    more, as one sequence a cell, with each decoder layer checkpointed.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174, section 3.
    """

    def prefill(self) -> Tensor:
        """See PackedNetwork.prefill."""
        self._levels: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        return super().prefill()

    def backpropagate(self, loss: Tensor) -> None:
        """See PackedNetwork.backpropagate."""
        loss.backward()
        self._keys_values = DynamicCache()
        ids, visible, positions, leaves = zip(*self._levels, strict=True)
        self._levels = []
        length = sum(level.shape[1] for level in ids)
        mask = torch.cat([nn.functional.pad(seen, (0, length - seen.shape[2])) for seen in visible], dim=1)
        wanted = torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves], dim=1)
        with self._checkpoint_layers():
            logits = self._model(
                input_ids=torch.cat(ids, dim=1),
                attention_mask=self._mask(mask),
                position_ids=torch.cat(positions, dim=1),
                use_cache=False,
                logits_to_keep=wanted.shape[1],
            ).logits
            logits.backward(wanted)

    def _forward(self, ids: Tensor, visible: Tensor, positions: Tensor, logits_to_keep: int = 0) -> Tensor:
        with torch.no_grad():
            logits = super()._forward(ids, visible, positions, logits_to_keep)
        leaf = logits.detach().requires_grad_()
        self._levels.append((ids, visible, positions, leaf))
        return leaf

    @contextmanager
    def _checkpoint_layers(self) -> Iterator[None]:
        """Adapters are in place and layers checkpointed, in the forward pass and when backward repeats it."""
        layers = {n: m for n, m in self._model.named_modules() if isinstance(m, GradientCheckpointingLayer)}
        self._swap(self._layers)
        self._swap({name: _Checkpointed(layer) for name, layer in layers.items()})
        try:
            yield
        finally:
            self._swap(layers)
            self._swap({name: layer.base for name, layer in self._layers.items()})


def needs_checkpointing(
    layers: Iterable[nn.Linear | ExpertProjection], prompts: Sequence[Sequence[int]], configs: Sequence[TrainConfig]
) -> bool:
    """Whether the activations of a pack's walk would take more than half of the memory that is free where it runs.

    Args:
        layers: those that adapters go on.
        prompts: token ids of each cell's prompt.
        configs: one a cell.
    """
    counted = list(layers)
    free = measure_free_bytes(counted[0].weight.device)
    return estimate_activation_bytes(counted, prompts, configs) > _MOST_OF_FREE_MEMORY * free


def estimate_activation_bytes(
    layers: Iterable[nn.Linear | ExpertProjection], prompts: Sequence[Sequence[int]], configs: Sequence[TrainConfig]
) -> int:
    """About what autograd keeps of a walk: input and output of every layer, at every position of the tree.

    Experts count as often as a token goes to one.

    Args:
        layers: those that adapters go on.
        prompts: token ids of each cell's prompt.
        configs: one a cell; an episode is taken for as many tokens as a secret has bits, twice, and one.
    """
    per_token = sum(_count_uses(m) * (m.in_features + m.out_features) * m.weight.element_size() for m in layers)
    # Every cell is padded to the widest.
    nodes = max(min(c.episodes_per_update + 1, c.N) * (2 * math.ceil(math.log2(c.N)) + 1) for c in configs)
    return per_token * len(configs) * (max(map(len, prompts)) + nodes)


def _count_uses(layer: nn.Linear | ExpertProjection) -> int:
    """How often a token goes through the layer."""
    return layer.experts_per_token if isinstance(layer, ExpertProjection) else 1


def measure_free_bytes(device: torch.device) -> float:
    """Memory of the device that nobody uses; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    report = Path("/proc/meminfo")
    lines = report.read_text().splitlines() if report.exists() else []
    available = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * available[0] if available else math.inf
