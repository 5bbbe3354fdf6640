"""No policy knows more than its feedback told: on real runs of every channel, and a planted leak is caught."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from table_rows import leak_report

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.task.secret import cell_secret

NUM_SECRETS = 64
CHANNELS = {
    "sft": {"algorithm": "sft"},
    "multi_step/sft": {"algorithm": "sft", "env_type": "multi_step"},
    "binary": {"reward_type": "binary"},
    "binned_distance-4-log": {"reward_type": "binned_distance", "reward_bins": 4},
    "distance": {"reward_type": "distance"},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "per_bit-episode": {"reward_type": "per_bit", "env_type": "multi_step", "credit": "episode"},
    "multi_step/bit_count": {"reward_type": "bit_count", "env_type": "multi_step"},
    "multi_step/binary": {"reward_type": "binary", "env_type": "multi_step"},
}


def describe_cell(channel, seed, **fields):
    group = {} if CHANNELS[channel].get("algorithm") == "sft" else {"group_size": 8}
    return TrainConfig(seed=seed, lora_rank=4, learning_rate=3e-3, **CHANNELS[channel], **group, **fields)


def train(pack):
    while not pack.finished:
        pack.update()
    rows, curves = pack.drain()
    return pd.DataFrame(rows), curves


@pytest.fixture(scope="module")
def every_channel():
    cells = [describe_cell(name, seed, N=16, n_steps=60) for name in CHANNELS for seed in range(NUM_SECRETS)]
    return train(Pack(cells))


def test_mean_absorbed_is_at_most_mean_observed_in_every_channel_at_every_update(every_channel):
    cells, curves = every_channel
    report = leak_report(curves, cells).set_index("channel")
    assert set(report.index) == CHANNELS.keys()
    assert set(report["num_secrets"]) == {NUM_SECRETS}
    assert set(report["verdict"]) == {"no leak"}


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_same_by_hand_with_finished_cells_carried_forward(every_channel, channel):
    cells, curves = every_channel
    mine = curves.to_pandas().merge(cells.loc[cells["channel"] == channel, ["cell_id"]])
    gap = mine.assign(gap=mine["absorbed_bits"] - mine["observed_bits"]).pivot(
        index="update", columns="cell_id", values="gap"
    )
    gap = gap.ffill()
    assert gap.shape[1] == NUM_SECRETS
    half_width = stats.t.ppf(0.995, NUM_SECRETS - 1) * gap.std(axis=1) / np.sqrt(NUM_SECRETS)
    assert (gap.mean(axis=1) <= half_width).all()


def test_the_check_is_about_policies_that_learned(every_channel):
    cells, _ = every_channel
    assert cells.groupby("channel")["absorbed_bits"].median().min() > 3.8
    assert (cells["status"] == "memorized").mean() > 0.9


OBJECTIVES: dict[str, dict[str, Any]] = {
    "rejection": {"advantage": "rejection"},
    "maxrl": {"advantage": "maxrl"},
    "std_normalized": {"advantage": "std_normalized"},
    "exponential_weights": {"advantage": "exponential_weights", "temperature": 0.3},
    "delightful": {"advantage": "delightful"},
    "entropy bonus and KL penalty": {"advantage": "rejection", "entropy_bonus": 0.05, "kl_penalty": 0.05},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_takes_more_than_was_told(objective):
    channels = ("per_bit", "binary")
    seeds = range(NUM_SECRETS)
    cells = [describe_cell(c, seed, N=16, n_steps=40, **OBJECTIVES[objective]) for c in channels for seed in seeds]
    rows, curves = train(Pack(cells))
    report = leak_report(curves, rows).set_index("channel")
    assert report["verdict"].to_dict() == dict.fromkeys(channels, "no leak")
    assert (rows["absorbed_bits"].groupby(rows["channel"]).mean() > 1).all()


KEYS: dict[str, dict[str, Any]] = {
    "keys-4/sft": {"algorithm": "sft", "batch_size": 4, "n_steps": 24},
    "keys-4/binary": {"advantage": "rejection", "kl_penalty": 0.3, "group_size": 8, "batch_size": 32, "n_steps": 40},
    "keys-4/distance-distill-policy": {
        "algorithm": "distill",
        "reward_type": "distance",
        "group_size": 4,
        "n_steps": 16,
    },
}


@pytest.mark.parametrize("channel", KEYS)
def test_no_policy_of_many_keys_takes_more_than_it_was_told_of_all(channel):
    fields: dict[str, Any] = {"N": 8, "num_keys": 4, "lora_rank": 4, "batch_size": 16, "measure_every": 4}
    rows, curves = train(Pack([TrainConfig(seed=seed, **fields | KEYS[channel]) for seed in range(NUM_SECRETS)]))
    assert leak_report(curves, rows)["verdict"].tolist() == ["no leak"]
    assert set(rows["channel"]) == {channel}
    assert rows["absorbed_bits"].mean() > 1.0


def plant(pack, leaking, learning_rate):
    """One supervised update on the secret, behind the observer's back, of every cell that leaks."""
    told = [(pack.state.configs[place], cell_secret(pack.state.configs[place])) for place in leaking]
    shared = {"algorithm": "sft", "lora_rank": 4, "learning_rate": learning_rate}
    hidden = Pack(
        [
            TrainConfig(N=config.N, env_type=config.env_type, secret=secret, seed=config.seed, **shared)
            for config, secret in told
        ]
    )
    for place, cell in enumerate(leaking):
        hidden.state.adapters.import_peft(place, pack.state.adapters.export_peft(cell))
    hidden.update()
    for place, cell in enumerate(leaking):
        pack.state.adapters.import_peft(cell, hidden.state.adapters.export_peft(place))


@pytest.mark.parametrize(
    ("channel", "num_secrets", "learning_rate"),
    [("binary", 64, 1e-2), ("binary", 256, 3e-3), ("distance", 64, 1e-2), ("multi_step/bit_count", 256, 3e-3)],
)
@pytest.mark.parametrize("leaks", [True, False])
def test_a_hidden_supervised_update_in_one_cell_of_twenty_is_caught(channel, num_secrets, learning_rate, leaks):
    pack = Pack([describe_cell(channel, seed, N=64, n_steps=2) for seed in range(num_secrets)])
    if leaks:
        plant(pack, range(0, num_secrets, 20), learning_rate)
    cells, curves = train(pack)
    (verdict,) = leak_report(pa.table(curves), cells)["verdict"]
    assert verdict == ("leak" if leaks else "no leak")
