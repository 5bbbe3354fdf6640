"""What channels are called: from their columns, in reading order."""

import chz
import pandas as pd
import pytest

from memrl.analysis.style import describe_channels
from memrl.config import TrainConfig
from memrl.task.reward import build_channel
from memrl.theory.capacity import channel_capacity

CHANNELS = {
    "SFT": {"algorithm": "sft"},
    "per bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "per bit, episode credit": {"reward_type": "per_bit", "env_type": "multi_step", "credit": "episode"},
    "distance": {"reward_type": "distance"},
    "distance, 16 log bins": {"reward_type": "binned_distance", "reward_bins": 16},
    "distance, 4 equal-mass bins": {"reward_type": "binned_distance", "reward_bins": 4, "binning": "equal_mass"},
    "bit count, multi-step": {"reward_type": "bit_count", "env_type": "multi_step"},
    "binary": {"reward_type": "binary"},
    "binary, multi-step": {"reward_type": "binary", "env_type": "multi_step"},
}


def describe(names):
    rows = []
    for name in names:
        for N in (16, 64):
            config = chz.replace(TrainConfig(N=N), **CHANNELS[name])
            told = channel_capacity(build_channel(config)).best_guess_bits if config.algorithm == "rl" else 6.0
            rows.append(config.identity() | {"channel": config.channel_name, "capacity_best_bits": told})
    return describe_channels(pd.DataFrame(rows))


def test_labels_and_their_order():
    found = describe(reversed(CHANNELS))
    labels = found["label"].tolist()
    assert set(labels) == set(CHANNELS)
    assert labels[0] == "SFT"
    assert labels[1:3] == ["per bit", "per bit, episode credit"]
    assert labels[-2:] == ["binary", "binary, multi-step"]
    assert labels.index("distance") < labels.index("distance, 16 log bins") < labels.index("bit count, multi-step")


def test_channels_of_one_kind_share_a_color_and_kinds_do_not():
    found = describe(CHANNELS).set_index("label")
    colors = found.groupby("kind")["color"].agg(set)
    assert all(len(of_kind) == 1 for of_kind in colors)
    assert len(set.union(*colors)) == found["kind"].nunique()


def test_two_channels_that_would_be_called_the_same_keep_their_names_apart():
    row = TrainConfig(N=16).identity() | {"capacity_best_bits": 0.3}
    found = describe_channels(pd.DataFrame([row | {"channel": "binary"}, row | {"channel": "binary-of-another-kind"}]))
    assert found["label"].tolist() == ["binary (binary)", "binary (binary-of-another-kind)"]


@pytest.mark.parametrize("address", ["package.module:function"])
def test_a_reward_of_the_users_own_is_called_by_its_address(address):
    row = TrainConfig(N=16).identity() | {"reward_type": address, "channel": address, "capacity_best_bits": 1.0}
    assert describe_channels(pd.DataFrame([row]))["label"].tolist() == [address]
