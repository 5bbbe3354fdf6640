"""The policies of a pack, and whatever else its configs and base model determine, which training leaves alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from memrl.config import TrainConfig, fields_of
from memrl.learning.numbered import Numbered
from memrl.learning.objective import Objective
from memrl.learning.roots import CellKeys, Prompts, Roots, draw_keys
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.base_model import EncodedTask
from memrl.policy.base_scores import BaseScores
from memrl.policy.forest import Forest, StateTable
from memrl.policy.network import PackedNetwork
from memrl.policy.packed import build_network
from memrl.policy.trie_walk import Nodes
from memrl.task.reward import Channel, build_channel


@dataclass
class PackPolicy:
    """How the cells of a pack answer, are rewarded, and learn.

    Attributes:
        network: base model and adapters.
        adapters: those that the network reads; the state of the pack holds them too.
        tasks: each cell's prompt and answers, in tokens.
        keys: each cell's prompts and secrets: those of its keys, or one of each.
        roots: the prompts that are asked now; of keys they change from update to update.
        forest: the answers to each of them, and the path of each secret.
        channels: what an episode of each cell tells.
        objectives: what each cell ascends.
        group_sizes: episodes of each group of one root; an sft cell's examples are one group.
        num_env_steps: env_steps of a whole answer.
        base_scores: what the base model itself says, for cells with a KL penalty.
        updates_per_batch: how many updates each batch is used for.
        distills: whether the cells are trained on what an observer knows.
    """

    network: PackedNetwork
    adapters: AdapterPack
    tasks: list[EncodedTask]
    keys: list[CellKeys]
    roots: Roots
    forest: Forest
    channels: Numbered[Channel]
    objectives: Numbered[Objective]
    group_sizes: Int[np.ndarray, "cell group"]
    num_env_steps: Int[np.ndarray, "cell"]
    base_scores: BaseScores
    updates_per_batch: int
    distills: bool

    @classmethod
    def build(
        cls,
        base: PreTrainedModel,
        tasks: Sequence[EncodedTask],
        configs: Sequence[TrainConfig],
        prompts: Sequence[Prompts] | None = None,
    ) -> "PackPolicy":
        """Puts fresh adapters on a base model.

        Args:
            base: the base model, frozen.
            tasks: prompt and answers of each cell.
            configs: the cells.
            prompts: token ids of the prompts of each cell's keys; unset: no cell has any.

        Raises:
            ValueError: the model has no layers for adapters, or a custom reward is no function of (guess, secret, N).
        """
        prompts = [[task.prompt_ids] for task in tasks] if prompts is None else prompts
        keys = [CellKeys.of(*cell) for cell in zip(configs, prompts, strict=True)]
        group_sizes = _lay_out_groups(configs)
        roots = Roots.choose(keys, [draw_keys(config, 0) for config in configs], group_sizes)
        network, adapters = build_network(base, roots.prompts, configs, roots.cell)
        states = StateTable([task.automaton for task in tasks])
        return cls(
            network,
            adapters,
            list(tasks),
            keys,
            roots,
            _grow_forest(states, tasks, roots),
            Numbered.of([_share_channel(**{name: getattr(c, name) for name in _CHANNEL_FIELDS}) for c in configs]),
            Numbered.of([Objective.of(config) for config in configs]),
            group_sizes,
            np.array([task.num_env_steps for task in tasks]),
            BaseScores(base, states.alphabet),
            configs[0].updates_per_batch,
            configs[0].algorithm == "distill",
        )

    @property
    def has_keys(self) -> bool:
        """Whether some cell has more prompts than one."""
        return any(len(of_cell) > 1 for of_cell in self.keys)

    def plant(self, chosen: Sequence[Int[np.ndarray, "_"]]) -> None:
        """Asks these keys of every cell from now on; see `Roots.choose`."""
        self.roots = Roots.choose(self.keys, chosen, self.group_sizes)
        self.forest = _grow_forest(self.forest.states, self.tasks, self.roots)
        self.network.plant(self.roots.prompts, self.roots.cell, len(self.keys))

    @property
    def weighs_nodes(self) -> Bool[np.ndarray, "cell"]:
        """Which cells' objectives ask for whole distributions at the nodes of a walk."""
        return np.array([objective.weighs_nodes for objective in self.objectives.values])[self.objectives.index]

    def score_base(self, nodes: Nodes) -> Float[Tensor, "node letter"]:
        """The base model's logits at the nodes of cells with a KL penalty, 0 at the others."""
        logits = torch.zeros_like(nodes.logprob, requires_grad=False)
        penalized = np.array([objective.kl_penalty > 0 for objective in self.objectives.values])
        rows = np.flatnonzero(penalized[self.objectives.index][nodes.cell])
        if len(rows):
            begin = ((self.roots.prompts[int(nodes.root[row])], nodes.tokens[row]) for row in rows)
            scores = self.base_scores.score([(*ids, *tokens[tokens >= 0].tolist()) for ids, tokens in begin])
            logits[torch.from_numpy(rows).to(logits.device)] = scores.to(logits)
        return logits

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Shrinks to the given cells, one at least; the adapters shrink with the state."""
        for part in (self.channels, self.objectives):
            part.keep(cells)
        chosen = [self.roots.key[self.roots.cell == cell] for cell in cells]
        self.tasks, self.keys = ([part[cell] for cell in cells.tolist()] for part in (self.tasks, self.keys))
        self.group_sizes, self.num_env_steps = self.group_sizes[cells], self.num_env_steps[cells]
        self.plant(chosen)


_CHANNEL_FIELDS = (*fields_of("task", "channel", "malformed"), "credit")


@cache
def _share_channel(**fields: Any) -> Channel:
    return build_channel(TrainConfig(**fields))


def _lay_out_groups(configs: Sequence[TrainConfig]) -> Int[np.ndarray, "cell group"]:
    sizes = np.zeros((len(configs), max(c.num_groups for c in configs)), dtype=np.int64)
    for row, config in enumerate(configs):
        sizes[row, : config.num_groups] = config.episodes_per_prompt // config.num_groups
    return sizes


def _grow_forest(states: StateTable, tasks: Sequence[EncodedTask], roots: Roots) -> Forest:
    own = [roots.secrets[roots.cell == cell, : task.num_env_steps] for cell, task in enumerate(tasks)]
    return Forest(states, [(task.automaton, secrets) for task, secrets in zip(tasks, own, strict=True)])
