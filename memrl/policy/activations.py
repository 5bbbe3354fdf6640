"""What the model's own forward passes leave for the update: all activations, or none, computed again when needed."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from memrl.config import TrainConfig
from memrl.policy.adapter_pack import ExpertProjection

_MOST_OF_FREE_MEMORY = 0.5
"""The share of the free memory that activations may take; logits, caches and what the estimate omits need some too."""


class Activations:
    """How a walk gets from the gradient of its states to that of the adapters: every level's graph stays till then."""

    def start(self) -> None:
        """Begins a walk."""

    def feed(self, compute: Callable[[], Tensor]) -> Tensor:
        """Runs the forward pass of one level; returns its states, for which a loss gives a gradient."""
        return compute()

    def backpropagate(self, loss: Tensor, compute_all: Callable[[], Tensor]) -> None:
        """Adds the gradient of a loss on the walk's states to the adapters'.

        Args:
            loss: a scalar.
            compute_all: runs one forward pass of the walk's whole tree; gives the states of all levels, one after
                another.
        """
        loss.backward()


class RecomputedActivations(Activations):
    """Memory for one layer's activations, for one more forward pass.

    The walk runs without a graph, and its states are leaves. For the update the whole tree goes through the model once
    more, as one sequence per cell, with each decoder layer checkpointed.

    Args:
        model: the base model.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174, section 3.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._leaves: list[Tensor] = []

    def start(self) -> None:
        """See Activations.start."""
        self._leaves = []

    def feed(self, compute: Callable[[], Tensor]) -> Tensor:
        """See Activations.feed."""
        with torch.no_grad():
            states = compute()
        self._leaves.append(states.detach().requires_grad_())
        return self._leaves[-1]

    def backpropagate(self, loss: Tensor, compute_all: Callable[[], Tensor]) -> None:
        """See Activations.backpropagate."""
        loss.backward()
        wanted = torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._leaves])
        self._leaves = []
        layers = {n: m for n, m in self._model.named_modules() if isinstance(m, GradientCheckpointingLayer)}
        with replace_modules(self._model, {name: _Checkpointed(layer) for name, layer in layers.items()}):
            compute_all().backward(wanted)


class _Checkpointed(nn.Module):
    """A decoder layer that keeps only its input for the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *inputs: object, **named: Any) -> object:
        return checkpoint(self.layer, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


@contextmanager
def replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Puts modules in the place of others, by path, while the block runs."""
    before = {path: model.get_submodule(path) for path in modules}
    _set_modules(model, modules)
    try:
        yield
    finally:
        _set_modules(model, before)


def _set_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)


def is_memory_short(
    layers: Iterable[nn.Linear | ExpertProjection],
    prompts: Sequence[Sequence[int] | np.ndarray],
    configs: Sequence[TrainConfig],
) -> bool:
    """Whether the activations of a pack's walk would take more than half of the memory that is free where it runs.

    Args:
        layers: those that adapters go on.
        prompts: token ids of each root's prompt.
        configs: one per cell.
    """
    counted = list(layers)
    free = measure_free_bytes(counted[0].weight.device)
    return estimate_activation_bytes(counted, prompts, configs) > _MOST_OF_FREE_MEMORY * free


def estimate_activation_bytes(
    layers: Iterable[nn.Linear | ExpertProjection],
    prompts: Sequence[Sequence[int] | np.ndarray],
    configs: Sequence[TrainConfig],
) -> int:
    """About what autograd keeps of a walk: input and output of every layer, at every position of the tree.

    Experts count as often as a token goes to one.

    Args:
        layers: those that adapters go on.
        prompts: token ids of each root's prompt.
        configs: one per cell; an episode is taken for as many tokens as a secret has bits, twice, and one.
    """
    per_token = sum(_count_uses(m) * (m.in_features + m.out_features) * m.weight.element_size() for m in layers)
    # Every cell is padded to the widest.
    nodes = max(min(c.episodes_per_update + 1, c.num_secrets) * (2 * math.ceil(c.secret_bits) + 1) for c in configs)
    return per_token * (len(prompts) * max(map(len, prompts)) + len(configs) * nodes)


def _count_uses(layer: nn.Linear | ExpertProjection) -> int:
    """How often a token goes through the layer."""
    return layer.experts_per_token if isinstance(layer, ExpertProjection) else 1


def measure_free_bytes(device: torch.device) -> float:
    """Memory of the device that nobody uses; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    report = Path("/proc/meminfo")
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    available = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * available[0] if available else math.inf
