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
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.base_model import EncodedTask
from memrl.policy.base_scores import BaseScores
from memrl.policy.network import PackedNetwork
from memrl.policy.packed import build_network
from memrl.policy.trie_walk import Forest, Nodes
from memrl.task.answer_format import cell_digits
from memrl.task.reward import Channel, build_channel


@dataclass
class PackPolicy:
    """How the cells of a pack answer, are rewarded, and learn.

    Attributes:
        network: base model and adapters.
        adapters: those that the network reads; the state of the pack holds them too.
        forest: the answers to each prompt, and the path of each secret.
        tasks: each cell's prompt and answers, in tokens.
        channels: what an episode of each cell tells.
        objectives: what each cell ascends.
        num_episodes: episodes of each group; an sft cell's examples are one group.
        num_env_steps: env_steps of a whole answer.
        base_scores: what the base model itself says, for cells with a KL penalty.
        updates_per_batch: how many updates each batch is used for.
        distills: whether the cells are trained on what an observer knows.
    """

    network: PackedNetwork
    adapters: AdapterPack
    forest: Forest
    tasks: list[EncodedTask]
    channels: Numbered[Channel]
    objectives: Numbered[Objective]
    num_episodes: Int[np.ndarray, "cell group"]
    num_env_steps: Int[np.ndarray, "cell"]
    base_scores: BaseScores
    updates_per_batch: int
    distills: bool

    @classmethod
    def build(cls, base: PreTrainedModel, tasks: Sequence[EncodedTask], configs: Sequence[TrainConfig]) -> "PackPolicy":
        """Puts fresh adapters on a base model.

        Args:
            base: the base model, frozen.
            tasks: prompt and answers of each cell.
            configs: the cells.

        Raises:
            ValueError: the model has no layers for adapters, or a custom reward is no function of (guess, secret, N).
        """
        network, adapters = build_network(base, [task.prompt_ids for task in tasks], configs)
        forest = Forest([task.automaton for task in tasks], [cell_digits(config) for config in configs])
        return cls(
            network,
            adapters,
            forest,
            list(tasks),
            Numbered.of([_share_channel(**{name: getattr(c, name) for name in _CHANNEL_FIELDS}) for c in configs]),
            Numbered.of([Objective.of(config) for config in configs]),
            _lay_out_groups(configs),
            np.array([task.num_env_steps for task in tasks]),
            BaseScores(base, forest.states.alphabet),
            configs[0].updates_per_batch,
            configs[0].algorithm == "distill",
        )

    @property
    def prompt_tokens(self) -> Int[np.ndarray, "cell"]:
        """Tokens of each cell's prompt."""
        return np.array([len(task.prompt_ids) for task in self.tasks])

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
            begin = ((self.tasks[nodes.cell[row]].prompt_ids, nodes.tokens[row]) for row in rows)
            scores = self.base_scores.score([(*ids, *tokens[tokens >= 0].tolist()) for ids, tokens in begin])
            logits[torch.from_numpy(rows).to(logits.device)] = scores.to(logits)
        return logits

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Shrinks to the given cells, one at least; the adapters shrink with the state."""
        for part in (self.network, self.forest, self.channels, self.objectives):
            part.keep(cells)
        self.tasks = [self.tasks[cell] for cell in cells]
        self.num_episodes, self.num_env_steps = self.num_episodes[cells], self.num_env_steps[cells]


_CHANNEL_FIELDS = (*fields_of("task", "channel", "malformed"), "credit")


@cache
def _share_channel(**fields: Any) -> Channel:
    return build_channel(TrainConfig(**fields))


def _lay_out_groups(configs: Sequence[TrainConfig]) -> Int[np.ndarray, "cell group"]:
    sizes = np.zeros((len(configs), max(c.num_groups for c in configs)), dtype=np.int64)
    for row, config in enumerate(configs):
        sizes[row, : config.num_groups] = config.episodes_per_update // config.num_groups
    return sizes
