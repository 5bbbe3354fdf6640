"""A pack is held to docs/one_cell.py: the same start and the same episodes give the same ledger and adapter."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import one_cell
import peft
import pytest
import torch
from naive_policy import compare_adapters, keep_norms_in_dtype, list_episodes, reward_guess
from scipy import stats

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy.base_model import load_base_model
from memrl.task.reward import build_channel
from memrl.task.secret import cell_secret
from memrl.theory.capacity import channel_capacity

SHARED: dict[str, Any] = {"n_steps": 10, "learning_rate": 4e-3, "dtype": "float64"}
CONFIGS = [
    TrainConfig(algorithm="sft", N=16, batch_size=2, seed=1, **SHARED),
    TrainConfig(N=16, reward_type="binary", group_size=16, lora_rank=2, seed=2, **SHARED),
    TrainConfig(N=64, reward_type="distance", group_size=8, lora_alpha=16.0, seed=3, **SHARED),
]


def write_cell(config, secret):
    """The same cell, as the example has it."""
    same = ("algorithm", "N", "lora_rank", "lora_alpha", "learning_rate", "n_steps", "stop_probability")
    fields = {name: getattr(config, name) for name in same}
    return one_cell.Cell(
        batch_size=config.episodes_per_update,
        secret=secret,
        reward=lambda guess, secret, N: reward_guess(config, guess, secret),
        **fields,
    )


def train_pack(configs):
    """Trains a pack to its end; returns each cell's secret, start, episodes by update, last adapter and ledger."""
    pack = Pack(configs)
    secrets = {config.cell_id: cell_secret(config) for config in pack.state.configs}
    starts = {config.cell_id: pack.state.adapters.export_peft(i) for i, config in enumerate(configs)}
    adapters, episodes = dict(starts), {config.cell_id: [] for config in configs}
    while not pack.finished:
        before = [config.cell_id for config in pack.state.configs]
        walk = pack.update()
        after = [config.cell_id for config in pack.state.configs]
        for name in after:
            episodes[name].append([tuple(tokens) for tokens in list_episodes(walk, before.index(name), 1)[0]])
            adapters[name] = pack.state.adapters.export_peft(after.index(name))
    curves = pack.drain()[1].to_pandas()
    columns = ["episodes", "observed_bits", "absorbed_bits"]
    ledgers = {name: rows.sort_values("update")[columns].to_numpy() for name, rows in curves.groupby("cell_id")}
    return [(secrets[n], starts[n], iter(episodes[n]), adapters[n], ledgers[n]) for n in secrets]


def test_a_pack_computes_what_the_example_does_cell_by_cell(monkeypatch):
    keep_norms_in_dtype(monkeypatch)
    for config, (secret, start, episodes, adapter, ledger) in zip(CONFIGS, train_pack(CONFIGS), strict=True):
        base, tokenizer = load_base_model("embedded", "float64")
        cell = write_cell(config, secret)
        policy = one_cell.add_adapter(base, cell, start)
        got = np.array(list(one_cell.train(cell, policy, tokenizer, lambda *_, drawn=episodes: next(drawn))))
        np.testing.assert_allclose(got, ledger, rtol=0, atol=1e-6)  # curves are float32
        trained = peft.get_peft_model_state_dict(policy)
        assert compare_adapters(trained, adapter) <= 1e-9
        assert compare_adapters(trained, start) > 1e-3


def test_the_example_draws_episodes_with_the_policys_own_probabilities():
    base, tokenizer = load_base_model("embedded")
    prompt = tuple(tokenizer.encode("0-15:"))
    answers = {tuple(tokenizer.encode(f"{guess}{tokenizer.eos_token}")): guess for guess in range(10)}
    torch.manual_seed(0)
    drawn = one_cell.sample_episodes(base, prompt, answers, 4000)
    with torch.no_grad():
        scored = one_cell.score_tokens(base, prompt, list(answers))
    p = np.exp([float(tokens.sum()) for tokens in scored])
    counts = np.array([*(drawn.count(answer) for answer in answers), sum(e not in answers for e in drawn)])
    assert stats.chisquare(counts, np.append(p, 1 - p.sum()) * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.reward_type)
def test_the_examples_capacity_is_that_of_the_channel(config):
    got = one_cell.capacity_bits(write_cell(config, 0).reward, config.N)
    assert got == pytest.approx(channel_capacity(build_channel(config)).uniform_guess_bits, abs=1e-9)


def test_the_example_runs_as_the_readme_says():
    script = Path(__file__).parents[2] / "docs" / "one_cell.py"
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert shown.count("bits per episode") == 2
    assert "sft: 4 bits to learn, and an episode can tell 4.00" in shown
