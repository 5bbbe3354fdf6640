"""A packed cell makes the updates that PEFT and torch.optim make alone, episode by episode, in float64."""

import copy
import math
from typing import Any

import chz
import peft
import pytest
import torch
from naive_policy import cell_loss, compare_adapters, keep_norms_in_dtype, list_episodes, regularize, supervised_loss
from one_cell import add_adapter, score_tokens

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy.adapter_pack import describe_adapter
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.calibrator import ensure_calibrated
from memrl.rollout.adapter_files import publish_adapter
from memrl.task.answer_format import cell_digits
from memrl.task.secret import cell_secret

UPDATES = 10
TOLERANCE = 1e-9

ENDLESS: dict[str, Any] = {"stop_probability": 1 - 1e-12}
"""No cell leaves because it knows its secret."""

THREE = [
    TrainConfig(
        N=16, reward_type="binary", lora_rank=2, learning_rate=1e-3, group_size=8, seed=1, dtype="float64", **ENDLESS,
    ),
    TrainConfig(
        N=10, reward_type="binned_distance", reward_bins=4, lora_rank=8, learning_rate=4e-3, group_size=4, batch_size=8,
        advantage="std_normalized", loss="ppo", seed=2, dtype="float64", **ENDLESS,
    ),
    TrainConfig(
        N=10, env_type="multi_step", reward_type="per_bit", lora_rank=1, learning_rate=2e-3, group_size=6, seed=3,
        advantage="leave_one_out", loss="reinforce", lora_alpha=8.0, adam_beta2=0.95, dtype="float64", **ENDLESS,
    ),
]  # fmt: skip


def list_thirty_two():
    """The three, one that ends after four updates, and 28 more of every rank, rate, channel, objective and size."""
    channels: list[dict[str, Any]] = [
        {"algorithm": "sft", "batch_size": 2},
        {"reward_type": "distance", "advantage": "exponential_weights", "temperature": 0.3, "kl_penalty": 0.05},
        {"reward_type": "binary", "malformed_reward": -1.0, "advantage": "constant_baseline", "baseline": 0.25},
        {"env_type": "multi_step", "reward_type": "bit_count", "credit": "return_to_go", "advantage": "delightful"},
        {"env_type": "multi_step", "reward_type": "per_bit", "credit": "episode", "advantage": "std_normalized"},
        {"env_type": "multi_step", "reward_type": "binary", "advantage": "maxrl", "entropy_bonus": 0.02},
        {"env_type": "multi_step", "algorithm": "sft"},
    ]
    more = [
        TrainConfig(
            **channel, N=N, lora_rank=rank, learning_rate=1e-3 * (1 + place), group_size=4, seed=rank, dtype="float64"
        )
        for place, channel in enumerate(channels)
        for N, rank in [(8, 1), (10, 3), (32, 4), (100, 16)]
    ]
    return [*THREE, chz.replace(THREE[0], n_steps=4, seed=9, advantage="rejection"), *more]


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch):
    keep_norms_in_dtype(monkeypatch)


@pytest.fixture(scope="module")
def base():
    return load_base_model("embedded", "float64")


class PlainLoop:
    """One cell, trained by PEFT and torch.optim.Adam on given episodes."""

    def __init__(self, base, config, secret, tensors):
        self.base, self.tokenizer = base
        self.config, self.secret = config, secret
        self.task = encode_task(self.tokenizer, config.N, config.env_type)
        self.model = add_adapter(copy.deepcopy(self.base), config, tensors)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        betas = (config.adam_beta1, config.adam_beta2)
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)

    def learn(self, groups):
        """Uses a batch as often as the cell says, each time beside what the policy that sampled it said."""
        rollout = None
        for _ in range(self.config.updates_per_batch):
            logprobs = score_tokens(self.model, self.task.prompt_ids, [e for group in groups for e in group])
            rollout = rollout or [score.detach() for score in logprobs]
            self.update(groups, logprobs, rollout)

    def update(self, groups, logprobs, rollout):
        if self.config.algorithm == "sft":
            loss = supervised_loss(logprobs)
        else:
            loss = cell_loss(self.config, self.secret, self.tokenizer, groups, logprobs, rollout)
            if self.config.entropy_bonus or self.config.kl_penalty:
                models = self.model, self.base
                loss = loss + regularize(self.config, self.tokenizer, *models, self.task.prompt_ids, groups)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def export(self):
        return peft.get_peft_model_state_dict(self.model)


def train_beside_peft(base, configs, compared):
    """Trains a pack, and PEFT alone on the episodes that the pack drew.

    Returns:
        each compared cell's adapter and episodes by the pack, and its adapter by PEFT, as (packed, plain, episodes).
    """
    pack = Pack(configs)
    names = [config.cell_id for config in configs]
    loops = {
        name: PlainLoop(base, configs[i], cell_secret(configs[i]), pack.state.adapters.export_peft(i))
        for i, name in enumerate(names)
        if i in compared
    }
    packed, episodes = {}, {name: [] for name in loops}
    for _ in range(UPDATES + 1):
        before = list(pack.state.configs)
        if pack.finished or pack.state.progress.batches.max() == UPDATES:
            break
        walk = pack.update()
        after = [config.cell_id for config in pack.state.configs]
        for place, config in enumerate(before):
            if (name := config.cell_id) in loops and name in after:
                groups = list_episodes(walk, place, config.num_groups)
                loops[name].learn(groups)
                episodes[name].append(groups)
                packed[name] = pack.state.adapters.export_peft(after.index(name))
    return packed, {name: loop.export() for name, loop in loops.items()}, episodes


@pytest.mark.parametrize("cell", range(3))
def test_pack_of_one_trains_as_peft_does(base, cell):
    packed, plain, episodes = train_beside_peft(base, [THREE[cell]], {0})
    (name,) = plain
    assert len(episodes[name]) == UPDATES
    assert compare_adapters(packed[name], plain[name]) <= TOLERANCE


def test_a_batch_that_is_used_three_times_trains_as_peft_does(base):
    again = {"updates_per_batch": 3, "n_steps": 5}
    configs = [
        chz.replace(THREE[0], loss="reinforce", **again),
        chz.replace(THREE[1], clip_range=0.02, **again),
        chz.replace(THREE[2], loss="importance_sampling", **again),
        TrainConfig(N=16, algorithm="sft", learning_rate=1e-4, dtype="float64", updates_per_batch=3, n_steps=5),
    ]
    packed, plain, episodes = train_beside_peft(base, configs, {0, 1, 2, 3})
    for name in plain:
        assert len(episodes[name]) == 5
        assert compare_adapters(packed[name], plain[name]) <= TOLERANCE


def test_pack_of_three_trains_as_peft_does(base):
    packed, plain, episodes = train_beside_peft(base, THREE, {0, 1, 2})
    for name in plain:
        assert len(episodes[name]) == UPDATES
        assert compare_adapters(packed[name], plain[name]) <= TOLERANCE


def test_pack_of_thirty_two_trains_as_peft_does_and_as_each_cell_alone(base):
    configs = list_thirty_two()
    assert len({config.cell_id for config in configs}) == 32
    packed, plain, episodes = train_beside_peft(base, configs, set(range(32)))
    assert len(episodes[configs[3].cell_id]) == 4
    for name in plain:
        assert compare_adapters(packed[name], plain[name]) <= TOLERANCE, name
    for i in (0, 3, 4, 9, 22):
        name = configs[i].cell_id
        alone, _, drawn = train_beside_peft(base, [configs[i]], {0})
        assert drawn[name] == episodes[name]
        assert compare_adapters(alone[name], packed[name]) <= TOLERANCE


def test_peft_loads_a_published_adapter_and_computes_the_same_policy(base, tmp_path):
    config = chz.replace(THREE[2], learning_rate=2e-2)
    pack = Pack([config])
    for _ in range(5):
        pack.update()
    tensors = {name: tensor.numpy() for name, tensor in pack.state.adapters.export_peft(0).items()}
    folder = publish_adapter(tmp_path, "cell", tensors, describe_adapter(config, list(pack.state.adapters.slots)))
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base[0]), folder)
    task = encode_task(base[1], config.N, config.env_type)

    walk = pack.update()
    (episodes,) = list_episodes(walk, 0, 1)
    with torch.no_grad():
        scored = score_tokens(model, task.prompt_ids, episodes)
    by_tokens = {tuple(tokens): logprobs for tokens, logprobs in zip(episodes, scored, strict=True)}
    for path, tokens in zip(walk.outcome_path, walk.outcome_tokens, strict=True):
        expected = by_tokens[tuple(tokens[tokens >= 0].tolist())]
        torch.testing.assert_close(walk.edge_logprob[path[path >= 0]].detach(), expected, rtol=0, atol=1e-12)


def test_adapters_move_by_far_more_than_the_tolerance(base):
    pack = Pack(THREE)
    start = [pack.state.adapters.export_peft(i) for i in range(3)]
    for _ in range(UPDATES):
        pack.update()
    for i in range(3):
        assert compare_adapters(pack.state.adapters.export_peft(i), start[i]) > 1e6 * TOLERANCE


@pytest.mark.pretrained
def test_pack_of_three_on_a_pretrained_model_trains_as_peft_does():
    # An epsilon like the gradients' size: with a far smaller one, Adam turns the rounding of a gradient near 0 into a
    # whole step.
    common = {"N": 16, "n_steps": 5, "group_size": 8, "adam_epsilon": 1e-3, "model": "smollm2-135m"}
    cells = [
        TrainConfig(algorithm="sft", lora_rank=4, learning_rate=3e-4, **common),
        TrainConfig(reward_type="distance", lora_rank=16, learning_rate=3e-4, seed=1, **common),
        TrainConfig(env_type="multi_step", reward_type="per_bit", lora_rank=8, learning_rate=3e-4, seed=2, **common),
    ]
    address = ensure_calibrated("smollm2-135m", cells)
    configs = [chz.replace(cell, model=address) for cell in cells]
    start = {c.cell_id: Pack([c]).state.adapters.export_peft(0) for c in configs}
    packed, plain, episodes = train_beside_peft(load_base_model(address), configs, {0, 1, 2})
    for name in plain:
        assert len(episodes[name]) == 5
        moved, apart = (measure_distance(other, plain[name]) for other in (start[name], packed[name]))
        assert moved > 0
        assert apart <= 1e-4 * moved


def measure_distance(first, second):
    """The l2 norm of the difference of two adapters."""
    return float(torch.cat([(first[name] - second[name]).flatten() for name in second]).norm())


@pytest.mark.pretrained
def test_absorbed_bits_of_a_pretrained_model_are_those_of_plain_passes_over_every_answer():
    tasks: list[dict[str, Any]] = [{}, {"env_type": "multi_step", "reward_type": "per_bit"}]
    cells = [TrainConfig(N=16, model="smollm2-135m", n_steps=1, group_size=2, **task) for task in tasks]
    address = ensure_calibrated("smollm2-135m", cells)
    model, tokenizer = load_base_model(address)
    for cell in cells:
        secrets = [chz.replace(cell, model=address, secret=secret) for secret in range(cell.N)]
        pack = Pack(secrets)
        while not pack.finished:
            pack.update()
        curves = pack.drain()[1].to_pandas()
        absorbed = curves[curves["update"] == 0].set_index("cell_id")["absorbed_bits"]
        task = encode_task(tokenizer, cell.N, cell.env_type)
        answers = [task.automaton.tokens(cell_digits(secret)).tolist() for secret in secrets]
        with torch.no_grad():
            plain = [float(scores.double().sum()) for scores in score_tokens(model, task.prompt_ids, answers)]
        for secret, logprob in zip(secrets, plain, strict=True):
            assert abs(absorbed[secret.cell_id] - (logprob / math.log(2) + 4.0)) <= 1e-4
