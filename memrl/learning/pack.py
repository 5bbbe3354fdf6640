"""A pack: K cells that train together over one base model, each exactly as it would alone."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memrl.config import SHARED_ROLES, Dtype, TrainConfig, fields_of, shared_fields
from memrl.learning.learner import Learner, Rewards, reward_walk
from memrl.learning.progress import CellProgress
from memrl.policy.adapter_pack import AdapterPack, describe_adapter
from memrl.policy.base_model import EncodedTask, encode_task, load_base_model
from memrl.policy.calibration import Prior, check_calibrated, measure_prior
from memrl.policy.packed import build_network
from memrl.policy.trie_walk import Forest, Walk, walk_tries
from memrl.rollout.backend import RolloutBackend, SampledEpisodes, SampleRequest
from memrl.rollout.in_process import InProcessSampler
from memrl.rollout.replay import Replay
from memrl.tables.schema import CURVES_SCHEMA
from memrl.task.reward import Channel, build_channel
from memrl.task.secret import cell_secret
from memrl.theory.observer import PackObserver


@cache
def share_base_model(model: str, dtype: Dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of this process, frozen; every pack of the process uses the same."""
    base, tokenizer = load_base_model(model, dtype, device)
    base.requires_grad_(False)
    return base, tokenizer


@cache
def _share_prior(model: str, dtype: Dtype, device: str, task: EncodedTask) -> Prior:
    return measure_prior(share_base_model(model, dtype, device)[0], task)


class Pack:
    """K cells over one base model: any mix of N, channel, rank, learning rate, loss and seed.

    Every call of `update` scores each cell's secret, samples its episodes on-policy, and makes one update of its
    adapter. Cells that have ended leave the pack; the others go on as if nothing had happened.

    Args:
        configs: the cells; they share the fields of `SHARED_ROLES`.
        device: where the base model and the adapters live.
        backend: who samples the episodes; unset: the learner's own weights, in the pass that scores them.

    Raises:
        ValueError: the cells differ in what they must share, the model can't be read, or it is not calibrated for a
        prompt.
    """

    def __init__(
        self, configs: Sequence[TrainConfig], *, device: str = "cpu", backend: RolloutBackend | None = None
    ) -> None:
        shared = {shared_fields(c) for c in configs}
        if len(shared) != 1:
            raise ValueError(f"configs must share {', '.join(fields_of(*SHARED_ROLES))}, got {sorted(shared)}")
        self._backend = backend
        self._where = (configs[0].model, configs[0].dtype, device)
        base, tokenizer = share_base_model(*self._where)
        tasks = [encode_task(tokenizer, c.N, c.env_type, c.prompt_format, c.bit_separator) for c in configs]
        self._cells = [self._start_cell(config, task) for config, task in zip(configs, tasks, strict=True)]
        self._channels = [cell.channel for cell in self._cells]
        self._secrets = np.array([cell.secret for cell in self._cells])
        self._num_env_steps = np.array([task.num_env_steps for task in tasks])
        self._tasks = tasks
        self._num_episodes = _lay_out_groups(configs)
        secrets = [t.answer_format.digits(s) for t, s in zip(tasks, self._secrets, strict=True)]
        self._forest = Forest([task.automaton for task in tasks], secrets)
        self._network, self._adapters = build_network(base, [task.prompt_ids for task in tasks], configs)
        self._learner = Learner(configs, self._network, self._adapters)
        self._sampler = InProcessSampler(configs, self._forest)
        self._observer = PackObserver(self._channels)
        self._ended: list[CellProgress] = []
        self._ids = np.array([c.cell_id for c in configs])
        self._order = np.arange(len(configs))
        self._curves = _no_curves()
        self.episodes = 0

    def _start_cell(self, config: TrainConfig, task: EncodedTask) -> CellProgress:
        prior = _share_prior(*self._where, task)
        check_calibrated(prior, task, config.model)
        secret = cell_secret(config)
        return CellProgress(
            config, secret, _share_channel(**{name: getattr(config, name) for name in _CHANNEL_FIELDS}), prior
        )

    @property
    def live(self) -> int:
        """Cells still training."""
        return len(self._cells)

    @property
    def finished(self) -> bool:
        """Whether every cell has ended."""
        return not self._cells

    @property
    def cells(self) -> list[CellProgress]:
        """The cells still training."""
        return self._cells

    @property
    def adapters(self) -> AdapterPack:
        """The adapters of the cells still training."""
        return self._adapters

    def update(self) -> Walk:
        """Scores, samples and updates every live cell once; ended cells leave.

        Returns:
            the walk of this update: its episodes, by the cells as they were before any left.
        """
        if self._backend is None:
            return self.learn()
        return self.learn(self._backend.sample(self.requests()))

    def requests(self) -> list[SampleRequest]:
        """What this update asks of a sampler outside the learner: one request for each live cell that is not sft."""
        return [
            self._request(i, cell, task)
            for i, (cell, task) in enumerate(zip(self._cells, self._tasks, strict=True))
            if cell.config.algorithm == "rl"
        ]

    def learn(self, episodes: Sequence[SampledEpisodes] | None = None) -> Walk:
        """Makes the update from the given episodes, or from its own where none are given; see `update`.

        Args:
            episodes: the answers to `requests()`, in its order.

        Raises:
            ValueError: episodes are another cell's, or were sampled by another version of its adapter.
        """
        start = time.perf_counter()
        splitter = self._sampler if episodes is None else Replay(self._forest, self._gather(episodes), self._num_groups)
        walk = walk_tries(self._network, self._forest, self._num_episodes, splitter)
        rollout = walk.edge_logprob.detach()
        if isinstance(splitter, Replay):
            told = torch.from_numpy(splitter.average_on_edges(walk)).to(rollout)
            rollout = torch.where(told.isnan(), rollout, told)
        for cell, log2, bits in zip(self._cells, walk.secret_log2, self._observer.observed_bits, strict=True):
            cell.record_score(float(log2), float(bits))
        learning = np.array([cell.status == "training" for cell in self._cells])
        rewards = reward_walk(walk, self._channels, self._secrets, self._num_env_steps)
        norms = self._learner.update(walk, rewards, learning, rollout)
        learning &= self._fail_diverged(norms)
        self._record_curves(walk, rewards, norms, rollout, learning)
        self._observer.observe(walk.outcome_cell, walk.outcomes, rewards.by_step)
        self._count(walk, learning, time.perf_counter() - start)
        if not learning.all():
            self._keep(np.nonzero(learning)[0])
        return walk

    def _request(self, index: int, cell: CellProgress, task: EncodedTask) -> SampleRequest:
        config = cell.config
        tensors = {name: t.float().cpu().numpy() for name, t in self._adapters.export_peft(index).items()}
        return SampleRequest(
            cell_id=config.cell_id,
            adapter=tensors,
            adapter_config=describe_adapter(config, list(self._adapters.slots)),
            adapter_version=cell.updates,
            prompt_ids=task.prompt_ids,
            stop_token_ids=() if task.stop_token_id is None else (task.stop_token_id,),
            max_tokens=task.max_tokens,
            num_episodes=config.episodes_per_update,
            seed=int(np.random.SeedSequence([int(config.cell_id, 16), cell.updates]).generate_state(1)[0]),
        )

    def _gather(self, episodes: Sequence[SampledEpisodes]) -> list[SampledEpisodes]:
        """Episodes of every cell, checked to be on-policy; the examples of an sft cell are its secret's tokens."""
        given, gathered = iter(episodes), []
        for cell, task in zip(self._cells, self._tasks, strict=True):
            if cell.config.algorithm == "sft":
                gathered.append(self._examples(cell, task))
                continue
            sampled = next(given)
            got, wanted = (sampled.cell_id, sampled.adapter_version), (cell.config.cell_id, cell.updates)
            if got != wanted:
                raise ValueError(f"episodes must be on-policy: of cell and adapter version {wanted}, got {got}")
            gathered.append(sampled)
        return gathered

    def _examples(self, cell: CellProgress, task: EncodedTask) -> SampledEpisodes:
        tokens = task.automaton.tokens(task.answer_format.digits(cell.secret))
        shape = (cell.config.episodes_per_update, len(tokens))
        return SampledEpisodes(
            cell.config.cell_id, cell.updates, np.broadcast_to(tokens, shape), np.full(shape, np.nan)
        )

    @property
    def _num_groups(self) -> np.ndarray:
        return np.array([cell.config.num_groups for cell in self._cells])

    def fail(self, error: str) -> None:
        """Ends every live cell as failed."""
        for cell in self._cells:
            cell.fail(error)
        self._ended += self._cells
        self._cells = []

    def drain(self) -> tuple[list[dict[str, Any]], pa.Table]:
        """Takes what was recorded since the last call.

        Returns:
            rows of episodes_to_memorize for the cells that ended, and the table of curves of all cells.
        """
        rows = [cell.to_row() for cell in self._ended]
        columns = {name: np.concatenate(pieces) for name, pieces in self._curves.items() if pieces}
        curves = CURVES_SCHEMA.empty_table()
        if columns:
            columns["cell_id"] = self._ids[columns["cell_id"]]
            curves = pa.table(columns, schema=CURVES_SCHEMA)
        self._ended, self._curves = [], _no_curves()
        return rows, curves

    def _fail_diverged(self, norms: np.ndarray) -> np.ndarray:
        finite = np.isfinite(norms)
        for cell in np.nonzero(~finite)[0]:
            if self._cells[cell].status == "training":
                self._cells[cell].fail(f"the policy diverged: the gradient's norm is {norms[cell]}")
        return finite

    def _count(self, walk: Walk, learning: np.ndarray, seconds: float) -> None:
        prompt_tokens = np.array([len(task.prompt_ids) for task in self._tasks])
        lengths = prompt_tokens[walk.outcome_cell] + (walk.outcome_path >= 0).sum(1)
        tokens = np.bincount(walk.outcome_cell, lengths * walk.outcome_counts.sum(1), minlength=len(self._cells))
        for cell, learns, more in zip(self._cells, learning, tokens, strict=True):
            cell.seconds += seconds / len(self._cells)
            if learns:
                cell.updates += 1
                cell.episodes += cell.config.episodes_per_update
                cell.tokens += int(more)
                self.episodes += cell.config.episodes_per_update

    def _record_curves(
        self, walk: Walk, rewards: Rewards, norms: np.ndarray, rollout: Tensor, learning: np.ndarray
    ) -> None:
        """One row a cell: its state before this update, and this update's episodes where it made one."""
        count = walk.outcome_counts.sum(1)
        edges = walk.edge_logprob.detach()
        real = walk.outcome_path >= 0
        logprob, gap = (
            np.where(real, values.double().cpu().numpy()[walk.outcome_path], 0.0).sum(1)
            for values in (edges, (edges - rollout).abs())
        )

        def average(values: np.ndarray) -> np.ndarray:
            total = np.bincount(walk.outcome_cell, values * count, minlength=len(self._cells))
            return np.where(learning, total / np.bincount(walk.outcome_cell, count, minlength=len(self._cells)), np.nan)

        supervised = np.array([cell.config.algorithm == "sft" for cell in self._cells])
        columns = {
            "cell_id": self._order,
            "update": [cell.updates for cell in self._cells],
            "episodes": [cell.episodes for cell in self._cells],
            "observed_bits": [cell.observed_bits for cell in self._cells],
            "absorbed_bits": [cell.absorbed_bits for cell in self._cells],
            "mean_reward": np.where(supervised, np.nan, average(rewards.total())),
            "well_formed": average(walk.outcomes.well_formed.astype(np.float64)),
            "entropy_bits": average(-logprob / np.log(2.0)),
            "gradient_norm": np.where(learning, norms, np.nan),
            "logprob_gap": average(gap) / average(real.sum(1).astype(np.float64)),
        }
        for name, values in columns.items():
            self._curves[name].append(np.asarray(values))

    def _keep(self, cells: np.ndarray) -> None:
        kept = set(cells.tolist())
        self._ended += [cell for i, cell in enumerate(self._cells) if i not in kept]
        self._cells = [self._cells[i] for i in cells]
        self._channels = [self._channels[i] for i in cells]
        self._secrets, self._num_env_steps = self._secrets[cells], self._num_env_steps[cells]
        self._order = self._order[cells]
        self._tasks, self._num_episodes = [self._tasks[i] for i in cells], self._num_episodes[cells]
        if not len(cells):
            return
        for part in (self._forest, self._learner, self._sampler):
            part.keep(cells)
        self._observer.keep(cells)


def _no_curves() -> dict[str, list[np.ndarray]]:
    return {name: [] for name in CURVES_SCHEMA.names}


_CHANNEL_FIELDS = (*fields_of("task", "channel", "malformed"), "credit")


@cache
def _share_channel(**fields: Any) -> Channel:
    return build_channel(TrainConfig(**fields))


def _lay_out_groups(configs: Sequence[TrainConfig]) -> np.ndarray:
    """Episodes of each group, int64 (cells, groups); an sft cell's examples are one group."""
    sizes = np.zeros((len(configs), max(c.num_groups for c in configs)), dtype=np.int64)
    for row, config in enumerate(configs):
        sizes[row, : config.num_groups] = config.episodes_per_update // config.num_groups
    return sizes
