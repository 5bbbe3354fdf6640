"""Episodes sampled elsewhere, walked down the answers as if they had been drawn here."""

import numpy as np
import pytest
import torch

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.forest import Forest, StateTable
from memrl.policy.packed import build_network
from memrl.policy.trie_walk import walk_tries
from memrl.rollout.backend import SampledEpisodes
from memrl.rollout.in_process import InProcessSampler, start_generators
from memrl.rollout.replay import Replay

CELLS = [
    TrainConfig(N=100, seed=1, lora_rank=2, group_size=64, batch_size=128, dtype="float64"),
    TrainConfig(N=10, seed=2, env_type="multi_step", reward_type="per_bit", group_size=50, dtype="float64"),
    TrainConfig(N=7, seed=3, group_size=40, batch_size=120, dtype="float64"),
]
"""N=7 and N=10 are answered with malformed answers now and then, after adapters have moved."""


class Bench:
    """Cells with adapters that have moved, and a walk that drew their episodes."""

    def __init__(self):
        model, tokenizer = load_base_model("embedded", "float64")
        self.tasks = [encode_task(tokenizer, c.N, c.env_type) for c in CELLS]
        secrets = [t.answer_format.digits(s) for t, s in zip(self.tasks, [42, 6, 3], strict=True)]
        automata = [task.automaton for task in self.tasks]
        self.forest = Forest(StateTable(automata), [(a, s[None]) for a, s in zip(automata, secrets, strict=True)])
        prompts = [task.prompt_ids for task in self.tasks]
        self.network, self.adapters = build_network(model.requires_grad_(False), prompts, CELLS)
        for cell in range(len(CELLS)):
            tensors = self.adapters.export_peft(cell)
            for name, tensor in tensors.items():
                if "lora_B" in name:
                    tensor.copy_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(cell)))
            self.adapters.import_peft(cell, tensors)
        self.num_groups = np.array([c.num_groups for c in CELLS])
        self.counts = np.zeros((3, 3), dtype=np.int64)
        for row, config in enumerate(CELLS):
            self.counts[row, : config.num_groups] = config.group_size
        self.drawn = self.walk(InProcessSampler(CELLS, start_generators(CELLS), self.forest))

    def walk(self, splitter):
        return walk_tries(self.network, self.forest, self.counts, splitter)


@pytest.fixture(scope="module")
def bench():
    bench = Bench()
    assert 0 < bench.drawn.outcomes.well_formed.mean() < 1
    return bench


def list_episodes(walk, rollout, *, tail=()):
    """The episodes of a walk, group by group, as a sampler would give them; what it wrote past the end is `tail`."""
    given = []
    for cell, config in enumerate(CELLS):
        rows = [
            row
            for group in range(config.num_groups)
            for row in np.repeat(np.arange(len(walk.outcome_cell)), walk.outcome_counts[:, group])
            if walk.outcome_cell[row] == cell
        ]
        width = walk.outcome_path.shape[1] + len(tail)
        tokens, logprobs = np.full((len(rows), width), -1), np.zeros((len(rows), width))
        for i, row in enumerate(rows):
            path = walk.outcome_path[row][walk.outcome_path[row] >= 0]
            tokens[i, : len(path)] = walk.outcome_tokens[row, : len(path)]
            logprobs[i, : len(path)] = rollout[path]
            if tail and not walk.outcomes.well_formed[row]:
                tokens[i, len(path) : len(path) + len(tail)] = tail
                logprobs[i, len(path) : len(path) + len(tail)] = -9.0
        given.append(SampledEpisodes(config.cell_id, 0, tokens, logprobs))
    return given


def describe(walk):
    """A walk as {(cell, tokens): (counts, (digits, well-formed), log P by token)}."""
    logprob = walk.edge_logprob.detach().numpy()
    described = {}
    for row, (cell, tokens, path) in enumerate(
        zip(walk.outcome_cell.tolist(), walk.outcome_tokens, walk.outcome_path, strict=True)
    ):
        ending = walk.outcomes.digits[row].tolist(), bool(walk.outcomes.well_formed[row])
        key = (cell, tuple(tokens[tokens >= 0].tolist()))
        assert key not in described
        described[key] = (walk.outcome_counts[row].tolist(), ending, logprob[path[path >= 0]].tolist())
    return described


@pytest.mark.parametrize("tail", [(), (12, 13, 47)])
def test_replayed_episodes_make_the_walk_that_drew_them_and_are_cut_where_they_become_illegal(bench, tail):
    rollout = bench.drawn.edge_logprob.detach().numpy()
    replay = Replay(bench.forest, list_episodes(bench.drawn, rollout, tail=tail), bench.num_groups)
    walk = bench.walk(replay)
    got, expected = describe(walk), describe(bench.drawn)
    assert got.keys() == expected.keys()
    for key in got:
        assert got[key][:2] == expected[key][:2]
        assert got[key][2] == pytest.approx(expected[key][2], abs=1e-12)
    np.testing.assert_allclose(walk.secret_log2, bench.drawn.secret_log2, atol=1e-12)


def test_the_samplers_own_logprobs_are_averaged_where_episodes_share_a_token(bench):
    rollout = bench.drawn.edge_logprob.detach().numpy()
    episodes = list_episodes(bench.drawn, rollout)
    noise = np.random.default_rng(0)
    noisy = [
        SampledEpisodes(e.cell_id, 0, e.tokens, e.rollout_logprobs + noise.normal(size=e.tokens.shape))
        for e in episodes
    ]
    replay = Replay(bench.forest, noisy, bench.num_groups)
    walk = bench.walk(replay)
    by_beginning: dict[tuple, list[float]] = {}
    for cell, given in enumerate(noisy):
        for tokens, logprobs in zip(given.tokens.tolist(), given.rollout_logprobs, strict=True):
            for length in range(1, tokens.index(-1) + 1 if -1 in tokens else len(tokens) + 1):
                by_beginning.setdefault((cell, *tokens[:length]), []).append(logprobs[length - 1])
    got, seen = replay.average_on_edges(walk), set()
    for cell, tokens, path in zip(walk.outcome_cell, walk.outcome_tokens, walk.outcome_path, strict=True):
        for length, edge in enumerate(path[path >= 0].tolist(), start=1):
            beginning = by_beginning[(int(cell), *tokens[:length].tolist())]
            assert got[edge] == pytest.approx(np.mean(beginning), abs=1e-12)
            seen.add(edge)
    assert np.isnan(got[[edge for edge in range(len(got)) if edge not in seen]]).all()
    assert max(map(len, by_beginning.values())) > 1


class FixedSampler:
    """A backend that is a pack of its own: it samples with the adapters that each request brings."""

    def __init__(self):
        self.model, self.tokenizer = load_base_model("embedded", "float64")
        self.model.requires_grad_(False)
        self.configs = {config.cell_id: config for config in ROUNDS}
        self.generators = {}

    def sample(self, requests):
        return [self._sample(request) for request in requests]

    def close(self):
        pass

    def _sample(self, request):
        config = self.configs[request.cell_id]
        task = encode_task(self.tokenizer, config.N, config.env_type)
        assert request.prompt_ids == task.prompt_ids
        forest = Forest(StateTable([task.automaton]), [(task.automaton, task.answer_format.digits(0)[None])])
        network, adapters = build_network(self.model, [request.prompt_ids], [config])
        adapters.import_peft(0, {name: torch.from_numpy(tensor) for name, tensor in request.adapter.items()})
        # One generator for the whole run, as the learner's own sampler has.
        generators = self.generators.setdefault(request.cell_id, start_generators([config]))
        sampler = InProcessSampler([config], generators, forest)
        walk = walk_tries(network, forest, np.array([[config.group_size] * config.num_groups]), sampler)
        logprob = walk.edge_logprob.detach().numpy()
        order = [np.repeat(np.arange(len(walk.outcomes)), walk.outcome_counts[:, g]) for g in range(config.num_groups)]
        rows = np.concatenate(order)
        logprobs = np.where(walk.outcome_path >= 0, logprob[walk.outcome_path], 0.0)[rows]
        return SampledEpisodes(request.cell_id, request.adapter_version, walk.outcome_tokens[rows], logprobs)


ROUNDS = [
    TrainConfig(N=16, seed=1, group_size=8, batch_size=16, learning_rate=3e-3, n_steps=12, dtype="float64"),
    TrainConfig(N=8, seed=2, env_type="multi_step", reward_type="per_bit", group_size=8, learning_rate=3e-3,
                n_steps=12, dtype="float64"),
    TrainConfig(N=8, seed=3, algorithm="sft", batch_size=2, learning_rate=3e-3, n_steps=12, dtype="float64"),
]  # fmt: skip


def train(backend=None):
    pack = Pack(ROUNDS, backend=backend)
    while not pack.finished:
        pack.update()
    rows, curves = pack.drain()
    return {row["cell_id"]: row for row in rows}, curves.to_pandas().set_index(["cell_id", "update"])


def test_a_pack_sampled_by_a_backend_trains_as_one_that_samples_itself():
    rows, curves = train(FixedSampler())
    own_rows, own_curves = train()
    for name, row in own_rows.items():
        assert (rows[name]["status"], rows[name]["updates"]) == (row["status"], row["updates"])
    for column in ("absorbed_bits", "observed_bits", "mean_reward", "well_formed", "entropy_bits", "gradient_norm"):
        np.testing.assert_allclose(curves[column], own_curves[column].reindex(curves.index), atol=1e-5, err_msg=column)
    # Requests carry float32, so the sampler's policy is not quite the learner's.
    rl = [config.cell_id for config in ROUNDS if config.algorithm == "rl"]
    assert 0 < curves.loc[rl, "logprob_gap"].max() < 1e-5


def test_episodes_of_another_version_or_cell_are_refused():
    pack, sampler = Pack(ROUNDS), FixedSampler()
    stale = sampler.sample(pack.requests())
    pack.learn(stale)
    with pytest.raises(ValueError, match="episodes must be on-policy"):
        pack.learn(stale)
    fresh = sampler.sample(pack.requests())
    with pytest.raises(ValueError, match="episodes must be on-policy"):
        pack.learn(fresh[::-1])


def test_requests_name_the_version_and_are_seeded_apart():
    pack = Pack(ROUNDS)
    first = pack.requests()
    pack.update()
    second = pack.requests()
    assert [request.adapter_version for request in first + second] == [0, 0, 1, 1]
    assert len({request.seed for request in first + second}) == 4
    assert [request.num_episodes for request in first] == [16, 8]
    assert first[0].adapter_config["r"] == ROUNDS[0].lora_rank
