"""A pack: K cells that train together over one base model, each exactly as it would alone."""

import json
import time
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memrl.config import SHARED_ROLES, Dtype, TrainConfig, fields_of, shared_fields
from memrl.learning.distillation import ask_by_posterior
from memrl.learning.keys import ask_keys
from memrl.learning.policy import PackPolicy
from memrl.learning.record import Record, describe_cell, tabulate_update
from memrl.learning.state import PackState, read_configs
from memrl.learning.update import update
from memrl.policy.adapter_pack import describe_adapter
from memrl.policy.base_model import EncodedTask, bring_model, encode_cell, encode_keys, identify_files, load_base_model
from memrl.policy.calibration import Prior, check_calibrated, measure_key_priors, measure_prior
from memrl.policy.packed import find_library
from memrl.policy.panels import keep_panels
from memrl.policy.trie_walk import Walk
from memrl.rollout.adapter_files import keep_adapter, prepare_adapters
from memrl.rollout.backend import RolloutBackend, SampledEpisodes, SampleRequest
from memrl.rollout.in_process import InProcessSampler
from memrl.rollout.replay import Replay
from memrl.tables.provenance import describe_processor
from memrl.tables.schema import Row
from memrl.task.reach import MILESTONES

_DEVICE = "device.json"


@cache
def share_base_model(model: str, dtype: Dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of this process, frozen; every pack of the process uses the same."""
    base, tokenizer = load_base_model(model, dtype, device)
    base.requires_grad_(False)
    if (library := find_library(base)) is not None:
        keep_panels(base, library)
    return base, tokenizer


@cache
def _share_prior(model: str, dtype: Dtype, device: str, task: EncodedTask, num_keys: int | None) -> Prior:
    base, tokenizer = share_base_model(model, dtype, device)
    if num_keys is None:
        return measure_prior(base, task)
    return measure_key_priors(base, task, encode_keys(tokenizer, task, num_keys))


@cache
def describe_base(model: str, device: str) -> dict[str, str | None]:
    """The columns that tell of a base model and of what it runs on."""
    files = identify_files(model)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else describe_processor()
    return {
        "base_hash": files.weights,
        "tokenizer_hash": files.tokenizer,
        "base_commit": files.commit,
        "processor": name,
    }


class Pack:
    """K cells over one base model: any mix of N, channel, rank, learning rate, loss and seed.

    Every call of `update` scores each cell's secret, samples its episodes on-policy, and makes one update of its
    adapter. Cells that have ended leave the pack; the others go on as if nothing had happened.

    Args:
        configs: the cells; they share the fields of `SHARED_ROLES`.
        device: where the base model and the adapters live.
        backend: who samples the episodes; unset: the learner's own weights, in the pass that scores them.
        adapters: folder where the adapter of each cell that ends is kept, in PEFT's layout; empty: nowhere.

    Attributes:
        policy: how the cells that are still training answer, are rewarded, and learn.
        state: what they have come to.
        episodes: episodes so far, over all cells.

    Raises:
        ValueError: the cells differ in what they must share, the model can't be read, or it is not calibrated for a
        prompt.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        *,
        device: str = "cpu",
        backend: RolloutBackend | None = None,
        adapters: str = "",
    ) -> None:
        shared = {shared_fields(c) for c in configs}
        if len(shared) != 1:
            raise ValueError(f"configs must share {', '.join(fields_of(*SHARED_ROLES))}, got {sorted(shared)}")
        self._backend, self._device = backend, device
        self._adapters = prepare_adapters(adapters) if adapters else None
        where = (configs[0].model, configs[0].dtype, device)
        base, tokenizer = share_base_model(*where)
        tasks = [encode_cell(tokenizer, config) for config in configs]
        self._base = describe_base(configs[0].model, device)
        self._priors = {}
        for config, task in zip(configs, tasks, strict=True):
            self._priors[config.cell_id] = prior = _share_prior(*where, task, config.num_keys)
            check_calibrated(prior, task, config.model)
        prompts = [encode_keys(tokenizer, task, c.num_keys) for task, c in zip(tasks, configs, strict=True)]
        self.policy = PackPolicy.build(base, tasks, configs, prompts)
        self.state = PackState.start(configs, self.policy)
        self.episodes = 0
        self._record = Record()

    @property
    def live(self) -> int:
        """Cells still training."""
        return len(self.state)

    @property
    def finished(self) -> bool:
        """Whether every cell has ended."""
        return not self.live

    def update(self) -> Walk:
        """Scores, samples and updates every live cell once; ended cells leave.

        Returns:
            the walk of this update: its episodes, by the cells as they were before any left.
        """
        return self.learn(None if self._backend is None else self._backend.sample(self.requests()))

    def learn(self, episodes: Sequence[SampledEpisodes] | None = None) -> Walk:
        """Makes the update from the given episodes, or from its own where none are given; see `update`.

        Args:
            episodes: the answers to `requests()`, in its order.

        Raises:
            ValueError: episodes are another cell's, or were sampled by another version of its adapter.
        """
        start = time.perf_counter()
        state, policy = self.state, self.policy
        if episodes is None and policy.distills and state.configs[0].explore != "policy":
            splitter = ask_by_posterior(policy, state)
        elif episodes is None:
            splitter = InProcessSampler(state.configs, state.generators, policy.forest)
        else:
            splitter = Replay(policy.forest, self._gather(episodes), np.array([c.num_groups for c in state.configs]))
        before = int(state.progress.episodes.sum())
        done = update(policy, state, splitter)
        self.episodes += int(state.progress.episodes.sum()) - before
        self._record.curves.append(tabulate_update(state, done, policy.forest.root_cell))
        state.progress.seconds += (time.perf_counter() - start) / len(state)
        if not done.learned.all():
            self._release(~done.learned)
        return done.walk

    def requests(self) -> list[SampleRequest]:
        """What this update asks of a sampler outside the learner: one request for each live cell that is not sft."""
        return [self._request(cell) for cell, config in enumerate(self.state.configs) if config.algorithm == "rl"]

    def fail(self, error: str) -> None:
        """Ends every live cell as failed."""
        for cell in range(self.live):
            self.state.progress.fail(cell, error)
        self._release(np.ones(self.live, dtype=bool))

    def list_reached(self) -> dict[str, Row]:
        """How far cells have come, by cell_id: `episodes`, and those at which each of `MILESTONES` was reached or None.

        Of cells that have ended, those whose rows nobody has drained.
        """
        progress, unreached = self.state.progress, dict.fromkeys(MILESTONES)
        live = {
            config.cell_id: unreached | progress.reach.milestones(cell) | {"episodes": int(progress.episodes[cell])}
            for cell, config in enumerate(self.state.configs)
        }
        return {row["cell_id"]: row for row in self._record.rows} | live

    def curtail(self, cell_ids: Collection[str]) -> None:
        """Lets cells, those of them that are live, end as stopped with the next update, which only scores them."""
        for cell, config in enumerate(self.state.configs):
            if config.cell_id in cell_ids:
                self.state.progress.curtail(cell)

    def drain(self) -> tuple[list[Row], pa.Table]:
        """Takes what was recorded since the last call.

        Returns:
            rows of episodes_to_memorize for the cells that ended, and the table of curves of all cells.
        """
        return self._record.drain()

    def save(self, folder: Path) -> None:
        """Writes all that `load` needs into a folder, which must exist; between two updates.

        Raises:
            ValueError: rows were recorded that nobody has drained: they would be lost.
        """
        if not self._record.is_empty:
            raise ValueError("drain must come before save, got rows that nobody has taken")
        self.state.save(folder)
        (folder / _DEVICE).write_text(json.dumps({"device": self._device, "episodes": self.episodes}))

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        cell_ids: Collection[str] | None = None,
        backend: RolloutBackend | None = None,
        adapters: str = "",
    ) -> "Pack":
        """The pack that `save` wrote: it goes on as if it had never been away, to the bit on the same machine.

        Args:
            folder: where it lies.
            cell_ids: the cells that go on, one at least; the others leave without a row. None: all.
            backend: as for a new pack.
            adapters: likewise.

        Raises:
            ValueError: as for a new pack.
        """
        where = json.loads((folder / _DEVICE).read_text())
        pack = cls(read_configs(folder), device=where["device"], backend=backend, adapters=adapters)
        pack.state.load(folder)
        ask_keys(pack.policy, pack.state)
        pack.episodes = where["episodes"]
        if cell_ids is not None:
            pack._leave_out([c.cell_id in cell_ids for c in pack.state.configs])
        return pack

    def _leave_out(self, is_kept: Sequence[bool]) -> None:
        kept = np.flatnonzero(is_kept)
        if len(kept) < self.live:
            self.state.keep(kept)
            self.policy.keep(kept)
            self.episodes = int(self.state.progress.episodes.sum())

    def _request(self, cell: int) -> SampleRequest:
        config, task, adapters = self.state.configs[cell], self.policy.tasks[cell], self.state.adapters
        version = int(self.state.progress.batches[cell])
        return SampleRequest(
            cell_id=config.cell_id,
            adapter={name: t.float().cpu().numpy() for name, t in adapters.export_peft(cell).items()},
            adapter_config=describe_adapter(config, list(adapters.slots)),
            adapter_version=version,
            prompt_ids=task.prompt_ids,
            stop_token_ids=() if task.stop_token_id is None else (task.stop_token_id,),
            max_tokens=task.max_tokens,
            num_episodes=config.episodes_per_update,
            seed=int(np.random.SeedSequence([int(config.cell_id, 16), version]).generate_state(1)[0]),
        )

    def _gather(self, episodes: Sequence[SampledEpisodes]) -> list[SampledEpisodes]:
        """Episodes of every cell, checked to be on-policy; the examples of an sft cell are its secret's tokens."""
        given, gathered = iter(episodes), []
        for cell, config in enumerate(self.state.configs):
            wanted = (config.cell_id, int(self.state.progress.batches[cell]))
            sampled = next(given) if config.algorithm == "rl" else self._examples(cell, *wanted)
            got = (sampled.cell_id, sampled.adapter_version)
            if got != wanted:
                raise ValueError(f"episodes must be on-policy: of cell and adapter version {wanted}, got {got}")
            gathered.append(sampled)
        return gathered

    def _examples(self, cell: int, cell_id: str, version: int) -> SampledEpisodes:
        task = self.policy.tasks[cell]
        tokens = task.automaton.tokens(self.policy.keys[cell].secrets[0])
        shape = (self.state.configs[cell].episodes_per_update, len(tokens))
        return SampledEpisodes(cell_id, version, np.broadcast_to(tokens, shape), np.full(shape, np.nan))

    def _keep_adapter(self, folder: Path, cell: int, row: Row) -> None:
        config, adapters = self.state.configs[cell], self.state.adapters
        tensors = {name: t.float().cpu().numpy() for name, t in adapters.export_peft(cell).items()}
        described = describe_adapter(config, list(adapters.slots))
        described["base_model_name_or_path"] = bring_model(config.model)
        keep_adapter(folder, config.cell_id, tensors, described, row)

    def _release(self, ended: Bool[np.ndarray, "cell"]) -> None:
        """Lets the cells that have ended leave, each with its row."""
        for cell in np.flatnonzero(ended):
            prior = self._priors.pop(self.state.configs[cell].cell_id)
            row = describe_cell(self.state, self.policy, cell, prior, self._base)
            if self._adapters is not None and row["status"] != "failed":
                self._keep_adapter(self._adapters, int(cell), row)
            self._record.rows.append(row)
        kept = np.flatnonzero(~ended)
        self.state.keep(kept)
        if len(kept):
            self.policy.keep(kept)
