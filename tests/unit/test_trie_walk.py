"""Walks down the answers: the law of the draws, P(secret), and gradients against one row per episode."""

import copy
import itertools
import math
from typing import Any, get_args

import numpy as np
import peft
import pytest
import torch
from naive_policy import cell_loss, keep_norms_in_dtype, list_episodes, plant_forest, regularize, supervised_loss
from one_cell import add_adapter, score_tokens
from scipy import stats

from memrl.config import Advantage, Credit, Loss, TrainConfig
from memrl.learning.policy import PackPolicy
from memrl.learning.state import PackState
from memrl.learning.update import update
from memrl.policy.base_model import encode_cell, load_base_model
from memrl.policy.calibration import compute_answer_log2
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.network import PackedNetwork
from memrl.policy.next_tokens import KeptDistributions
from memrl.policy.trie_walk import walk_tries
from memrl.rollout.in_process import InProcessSampler, start_generators
from memrl.task.answer_format import AnswerFormat, integer_format
from memrl.task.automaton import build_automaton
from memrl.task.parse import parse_answer
from memrl.task.secret import cell_secret

EPISODES = 1_000_000
"""Walks cost by distinct answers, so many episodes cost nothing, and show small errors."""


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch):
    keep_norms_in_dtype(monkeypatch)


@pytest.fixture(scope="module")
def random_model():
    """Untrained weights: nearly every answer is malformed."""
    return build_embedded_model(seed=3).double().eval().requires_grad_(False), build_embedded_tokenizer()


@pytest.fixture(scope="module")
def calibrated_model():
    return load_base_model("embedded", "float64")


class Bench:
    """Cells with adapters that have moved, ready to be walked."""

    def __init__(self, base, configs, spread):
        self.model, self.tokenizer = base
        self.configs = configs
        self.tasks = [encode_cell(self.tokenizer, config) for config in configs]
        self.policy = PackPolicy.build(self.model, self.tasks, self.configs)
        self.state = PackState.start(self.configs, self.policy)
        self.tensors = [self._move(cell, spread) for cell in range(len(configs))]

    def _move(self, cell, spread):
        generator = torch.Generator().manual_seed(cell)
        tensors = self.state.adapters.export_peft(cell)
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * spread)
        self.state.adapters.import_peft(cell, tensors)
        return tensors

    def merge(self, cell):
        """The cell's policy as plain weights."""
        merged = copy.deepcopy(self.model)
        scale = self.configs[cell].lora_alpha / self.configs[cell].lora_rank
        for name, tensor in self.tensors[cell].items():
            if "lora_A" in name:
                B = self.tensors[cell][name.replace("lora_A", "lora_B")]
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                merged.get_submodule(layer).weight.data += scale * B @ tensor
        return merged

    def walk(self, counts):
        return walk_tries(self.policy.network, self.policy.forest, np.array(counts), self.sampler())

    def sampler(self, kind=InProcessSampler):
        return kind(self.state.configs, start_generators(self.state.configs), self.policy.forest)


DRAWN = [
    TrainConfig(N=7, seed=1, lora_rank=2),
    TrainConfig(N=64, seed=2, lora_rank=3),
    TrainConfig(N=6, seed=3, env_type="multi_step", reward_type="per_bit", lora_rank=1),
]


def read_guesses(task, walk):
    """The integer of each outcome of a walk, were it one of this task's."""
    return task.answer_format.integers(walk.outcomes.digits[:, : task.num_env_steps])


def pool_small(observed, expected):
    """Merges cells of a chi-square table that expect fewer than ten, rarest first."""
    order = np.argsort(expected)
    observed, expected = observed[order], expected[order]
    cut = int(np.searchsorted(np.cumsum(expected), 10)) + 1
    assert len(expected) - cut > 1, "too few cells for a test"
    return [np.append(column[cut:], column[:cut].sum()) for column in (observed, expected)]


@pytest.mark.parametrize(
    ("base", "spread"), [("calibrated_model", 0.02), ("calibrated_model", 0.04), ("random_model", 0)]
)
def test_episodes_are_drawn_with_the_policys_own_probabilities(request, base, spread):
    bench = Bench(request.getfixturevalue(base), DRAWN, spread)
    walk = bench.walk([[EPISODES - 1000, 1000]] * 3)
    for cell, task in enumerate(bench.tasks):
        mine = walk.outcome_cell == cell
        np.testing.assert_array_equal(walk.outcome_counts[mine].sum(0), [EPISODES - 1000, 1000])
        p = np.exp2(compute_answer_log2(bench.merge(cell), task))
        whole = mine & walk.outcomes.well_formed
        guess = read_guesses(task, walk)[whole]
        counts = np.bincount(guess, walk.outcome_counts[whole].sum(1), minlength=task.N)
        table = np.append(counts, EPISODES - counts.sum()), np.append(p, 1 - p.sum()) * EPISODES
        assert stats.chisquare(*pool_small(*table)).pvalue > 1e-3
        assert 0 < counts.sum() < EPISODES


def test_malformed_episodes_end_in_the_tokens_that_the_policy_gives_them(random_model):
    bench = Bench(random_model, DRAWN, spread=0.05)
    walk = bench.walk([[EPISODES]] * 3)
    for cell, task in enumerate(bench.tasks):
        with torch.no_grad():
            p = torch.softmax(bench.merge(cell)(torch.tensor([task.prompt_ids])).logits[0, -1], -1).numpy().copy()
        p[task.automaton.alphabet[task.automaton.child[0] >= 0]] = 0.0
        at_once = (walk.outcome_cell == cell) & ~walk.outcomes.well_formed & ((walk.outcome_path >= 0).sum(1) == 1)
        counts = np.bincount(walk.outcome_tokens[at_once, 0], walk.outcome_counts[at_once, 0], minlength=len(p))
        assert counts[p == 0].sum() == 0
        left = counts.sum()
        assert abs(left - EPISODES * p.sum()) < 4 * math.sqrt(EPISODES * p.sum() * (1 - p.sum()))
        assert stats.chisquare(*pool_small(counts[p > 0], p[p > 0] / p.sum() * left)).pvalue > 1e-3


@pytest.mark.parametrize("base", ["random_model", "calibrated_model"])
def test_the_secret_is_scored_exactly_whether_sampled_or_not(base, request):
    bench = Bench(request.getfixturevalue(base), DRAWN, spread=0.05)
    walk = bench.walk([[1]] * 3)
    for cell, task in enumerate(bench.tasks):
        expected = compute_answer_log2(bench.merge(cell), task)[cell_secret(bench.configs[cell])]
        assert walk.secret_log2[cell] == pytest.approx(expected, abs=1e-10)
        steps = task.answer_format.num_env_steps
        assert walk.symbol_log2[cell, :steps].sum() == pytest.approx(walk.secret_log2[cell], abs=1e-12)
        assert np.isnan(walk.symbol_log2[cell, steps:]).all()


def list_learning_rules():
    """Every loss x advantage x credit, on channels and sizes in turn, beside supervised cells and penalties."""
    losses, advantages = get_args(Loss), get_args(Advantage)
    shared: dict[str, Any] = {"lora_rank": 2, "adam_beta1": 0.0, "temperature": 0.6, "dtype": "float64"}
    multi: dict[str, Any] = {"N": 6, "env_type": "multi_step", "group_size": 5, "batch_size": 10, "clip_range": 0.05}
    penalties = itertools.cycle([{}, {"entropy_bonus": 0.3}, {"kl_penalty": 0.7, "entropy_bonus": 0.1}, {}, {}])
    channels = itertools.cycle(["per_bit", "bit_count", "binary"])
    cells = []
    for loss, advantage, credit in itertools.product(losses, advantages, get_args(Credit)):
        channel: dict[str, Any] = {"reward_type": next(channels), "malformed_reward": -0.5}
        if advantage in ("rejection", "maxrl"):
            channel = {"reward_type": "per_bit" if credit == "per_step" else "binary"}
        rule: dict[str, Any] = {"loss": loss, "advantage": advantage, "credit": credit, "baseline": 0.4}
        cells.append(TrainConfig(**multi, **channel, **rule, **next(penalties), **shared, seed=len(cells)))
    for loss, advantage in itertools.product(losses, advantages):
        channel = {"reward_type": "binned_distance", "reward_bins": 4, "malformed_reward": -0.5}
        if advantage in ("rejection", "maxrl"):
            channel = {}
        rule = {"loss": loss, "advantage": advantage, "group_size": 6}
        cells.append(TrainConfig(N=11, **channel, **rule, **next(penalties), **shared, seed=len(cells)))
    sequence: dict[str, Any] = {"N": 2, "secret_length": 5, "env_type": "multi_step", "group_size": 5, "batch_size": 10}
    for channel_name, credit in itertools.product(["per_element", "element_count", "binary"], get_args(Credit)):
        rule = {"reward_type": channel_name, "credit": credit, "malformed_reward": -0.5}
        cells.append(TrainConfig(**sequence, **rule, **next(penalties), **shared, seed=len(cells)))
    return [*cells, *(TrainConfig(algorithm="sft", N=N, batch_size=n, **shared) for N, n in [(11, 1), (100, 3)])]


def read_gradient(bench, cell):
    """The cell's gradient under PEFT's names: Adam's first moment after one update without decay."""
    adapters, tensors = bench.state.adapters, {}
    flat = adapters.optimizer.moments["moment1"]
    for slot in adapters.slots.values():
        tensors[f"{slot.name}.lora_A"] = adapters.view_A(flat, slot)[cell]
        tensors[f"{slot.name}.lora_B"] = adapters.view_B(flat, slot)[cell].T
    return tensors


def differentiate_naively(bench, model, cell, walk, rollout):
    """The gradient of the same episodes, each a row of its own, by autograd through PEFT."""
    config, task = bench.configs[cell], bench.tasks[cell]
    peft.set_peft_model_state_dict(model, bench.tensors[cell])
    groups = list_episodes(walk, cell, config.num_groups)
    episodes = [tokens for group in groups for tokens in group]
    logprobs = score_tokens(model, task.prompt_ids, episodes)
    if config.algorithm == "sft":
        loss = supervised_loss(logprobs)
    else:
        paths = {
            tuple(tokens[tokens >= 0].tolist()): path[path >= 0]
            for owner, tokens, path in zip(walk.outcome_cell, walk.outcome_tokens, walk.outcome_path, strict=True)
            if owner == cell
        }
        old = [rollout[paths[tuple(tokens)]] for tokens in episodes]
        loss = cell_loss(config, cell_secret(config), bench.tokenizer, groups, logprobs, old)
        if config.entropy_bonus or config.kl_penalty:
            loss = loss + regularize(config, bench.tokenizer, model, bench.model, task.prompt_ids, groups)
    model.zero_grad()
    loss.backward()
    return {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class OffPolicySampler(InProcessSampler):
    """Draws as the policy does, and says that another one drew."""

    def find_rollout_logprob(self, walk):
        own = super().find_rollout_logprob(walk)
        return own + 0.1 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("sampler", [InProcessSampler, OffPolicySampler])
def test_gradients_are_those_of_the_naive_path_for_every_loss_advantage_and_credit(calibrated_model, sampler):
    bench = Bench(calibrated_model, list_learning_rules(), spread=0.1)
    bench.state.progress.status[-1] = "budget_spent"
    done = update(bench.policy, bench.state, bench.sampler(sampler))
    walk, rollout, learning = done.walk, done.rollout_logprob, done.learned
    assert not walk.outcomes.well_formed.all()
    assert learning.tolist() == [True] * (len(bench.configs) - 1) + [False]
    model = add_adapter(copy.deepcopy(bench.model), bench.configs[0])  # pyright: ignore[reportArgumentType] (same fields)
    for cell, config in enumerate(bench.configs):
        got, expected = read_gradient(bench, cell), differentiate_naively(bench, model, cell, walk, rollout)
        assert got.keys() == expected.keys()
        moved = max(float(gradient.abs().max()) for gradient in expected.values())
        if not learning[cell]:
            assert moved > 0
            assert not any(gradient.any() for gradient in got.values())
            continue
        difference = max(float((got[name] - expected[name]).abs().max()) for name in got)
        assert difference <= 1e-10 * max(1.0, moved), config


def test_fewer_cells_are_walked_as_before(calibrated_model):
    bench = Bench(calibrated_model, DRAWN, spread=0.05)
    before = bench.walk([[100]] * 3)
    kept = np.array([0, 2])
    for part in (bench.policy, bench.state):
        part.keep(kept)
    after = bench.walk([[100]] * 2)
    np.testing.assert_allclose(after.secret_log2, before.secret_log2[kept], rtol=0, atol=1e-12)
    for new, old in enumerate(kept):
        theirs, mine = before.outcome_cell == old, after.outcome_cell == new
        np.testing.assert_array_equal(after.outcome_tokens[mine], before.outcome_tokens[theirs])
        np.testing.assert_array_equal(after.outcome_counts[mine], before.outcome_counts[theirs])


class TablePolicies(PackedNetwork):
    """Policies without a network: the next token depends on the root and the last token, by a table."""

    def __init__(self, tables):
        self.logprobs = torch.log_softmax(tables, dim=-1)

    def prefill(self):
        self.root = np.arange(len(self.logprobs))
        return KeptDistributions(self.logprobs[:, -1])

    def extend(self, tokens, parents, cell):
        self.root = self.root[parents]
        return KeptDistributions(self.logprobs[self.root, tokens])

    def backpropagate(self, loss):
        raise AssertionError("tables do not learn")

    def _start(self):
        raise AssertionError("tables have no adapters")

    def _feed(self, first_chunk):
        raise AssertionError("tables have no states")


class EvenSplitter:
    """Splits episodes over tokens as evenly as whole numbers allow, so that nothing is drawn."""

    def split(self, level, legal, illegal):
        weights = np.concatenate([legal, illegal[:, None]], axis=1).cumsum(1)
        ends = np.rint(level.counts[:, :, None] * (weights / weights[:, -1:])[:, None, :]).astype(np.int64)
        return np.diff(ends, axis=2, prepend=0)

    def find_rollout_logprob(self, walk):
        return walk.edge_logprob.detach()

    def pick_illegal(self, cell, probabilities, count):
        return np.full(count, probabilities.argmax())


FORMATS = [AnswerFormat(3, 4, 81, " "), integer_format(6, "multi_step"), integer_format(12, "single_step")]
"""Four symbols of three values, bits with a bound, and decimals that end with a stop token."""


def build_forest(root_cell=None):
    """Two roots of the first format and one of each other; token ids are digits, 10 the separator, 11 the stop."""
    automata = []
    for answer_format in FORMATS:
        spans = [[int(d) for d in answer_format.symbol_text(digit)] for digit in range(answer_format.radix)]
        later = [[*([10] if answer_format.separator else []), *span] for span in spans]
        stop = 11 if answer_format.ends_with_stop else None
        automata.append(build_automaton(answer_format, spans, later if answer_format.num_env_steps > 1 else [], stop))
    roots = [automata[i] for i in (0, 0, 1, 2)]
    secrets = [np.array([2, 0, 1, 1]), np.array([0, 0, 2, 1]), np.array([1, 0, 1]), np.array([10])]
    return plant_forest(roots, secrets, root_cell), roots, secrets


def walk_tables(root_cell=None):
    forest, roots, secrets = build_forest(root_cell)
    tables = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 13, 13)))
    # What makes answers whole is likely: separators after digits and digits after them, bits, and an early stop.
    tables[:2, :10, 10] += 4.0
    tables[:2, 10:, :3] += 3.0
    tables[2, :, :2] += 3.0
    tables[3, :10, 11] += 3.0
    counts = np.array([[4000, 1000], [3000, 0], [500, 500], [2000, 7]])
    return walk_tries(TablePolicies(tables), forest, counts, EvenSplitter()), forest, roots, secrets, tables, counts


def test_a_walk_scores_the_secret_of_every_root_and_reads_answers_off_their_paths():
    walk, _, roots, secrets, tables, counts = walk_tables()
    logprobs = torch.log_softmax(tables, dim=-1).numpy()
    for root, (automaton, secret) in enumerate(zip(roots, secrets, strict=True)):
        tokens = automaton.tokens(secret)
        expected = logprobs[root, [-1, *tokens[:-1]], tokens].sum() / math.log(2)
        assert walk.secret_log2[root] == pytest.approx(expected, abs=1e-12)
        mine = walk.outcome_root == root
        np.testing.assert_array_equal(walk.outcome_counts[mine].sum(0), counts[root])
        steps = automaton.answer_format.num_env_steps
        for row in np.flatnonzero(mine):
            written = walk.outcome_tokens[row][walk.outcome_tokens[row] >= 0]
            parsed = parse_answer(automaton, written.tolist())
            assert walk.outcomes.digits[row].tolist() == [*parsed.digits, *[-1] * (4 - steps)]
            assert (walk.outcomes.well_formed[row], len(written)) == (parsed.well_formed, parsed.num_tokens)
            path = walk.outcome_path[row][walk.outcome_path[row] >= 0]
            got = walk.edge_logprob.numpy()[path]
            np.testing.assert_allclose(got, logprobs[root, [-1, *written[:-1]], written], atol=1e-12)
            ends = np.cumsum([len(automaton.spans[t > 0][d]) for t, d in enumerate(parsed.digits) if d >= 0])
            np.testing.assert_array_equal(
                walk.edge_env_step[path], [min((ends <= i).sum(), steps - 1) for i in range(len(path))]
            )
        assert 0 < walk.outcomes.well_formed[mine].mean() < 1
        assert mine.sum() > 6


def test_roots_of_one_cell_are_walked_as_those_of_cells_of_their_own():
    alone, shared = walk_tables()[0], walk_tables(np.array([0, 0, 1, 2]))[0]
    np.testing.assert_array_equal(shared.secret_log2, alone.secret_log2)
    np.testing.assert_array_equal(shared.outcome_root, alone.outcome_root)
    np.testing.assert_array_equal(shared.outcome_cell, np.array([0, 0, 1, 2])[alone.outcome_root])
    np.testing.assert_array_equal(shared.outcome_counts, alone.outcome_counts)
    np.testing.assert_array_equal(shared.outcome_tokens, alone.outcome_tokens)
    assert sorted(set(shared.edge_cell)) == [0, 1, 2]
