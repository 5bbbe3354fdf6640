"""Packs: repeatable to the bit, indifferent to neighbors, and honest about when a cell reached what."""

import math
from typing import Any

import chz
import numpy as np
import pandas as pd
import pytest

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy.base_model import encode_task, load_base_model

RATE: dict[str, Any] = {"learning_rate": 3e-3}
MIXED = [
    TrainConfig(N=8, seed=1, **RATE),
    TrainConfig(N=64, algorithm="sft", batch_size=1, seed=2, **RATE),
    TrainConfig(
        N=16, reward_type="binned_distance", reward_bins=4, group_size=8, seed=3, n_steps=5, learning_rate=1e-4
    ),
    TrainConfig(N=8, env_type="multi_step", reward_type="per_bit", group_size=8, lora_rank=2, seed=4, **RATE),
    TrainConfig(N=10, env_type="multi_step", reward_type="binary", group_size=16, max_episodes=100, **RATE),
    TrainConfig(N=100, reward_type="distance", group_size=16, lora_rank=1, seed=6, n_steps=40, **RATE),
]
OF_TIME = ["seconds", "created"]


def train(configs):
    """Rows of episodes_to_memorize and curves, as frames sorted by cell."""
    pack, rows, curves = Pack(configs), [], []
    while not pack.finished:
        pack.update()
        more_rows, more_curves = pack.drain()
        rows += more_rows
        curves.append(more_curves.to_pandas())
    frame = pd.concat(curves).sort_values(["cell_id", "update"]).reset_index(drop=True)
    return pd.DataFrame(rows).sort_values("cell_id").reset_index(drop=True), frame


@pytest.fixture(scope="module")
def trained():
    return train(MIXED)


def test_the_same_pack_again_gives_identical_rows_and_curves_but_for_times(trained):
    rows, curves = train(MIXED)
    pd.testing.assert_frame_equal(rows.drop(columns=OF_TIME), trained[0].drop(columns=OF_TIME), check_exact=True)
    pd.testing.assert_frame_equal(curves, trained[1], check_exact=True)


def test_episodes_that_were_all_rewarded_alike_are_not_backpropagated(monkeypatch):
    # So few guesses miss the secret for these seeds.
    pack = Pack([TrainConfig(N=512, group_size=2, seed=seed, **RATE) for seed in range(2)])
    before = pack.state.adapters.parameters.clone()

    def refuse(loss):
        raise AssertionError("backpropagated")

    monkeypatch.setattr(pack.policy.network, "backpropagate", refuse)
    for _ in range(3):
        pack.update()
    assert (pack.drain()[1]["gradient_norm"].to_numpy() == 0).all()
    assert (pack.state.adapters.parameters == before).all()


def test_another_seed_gives_other_episodes_and_another_secret():
    rows, _ = train([chz.replace(MIXED[0], seed=seed, group_size=4) for seed in range(8)])
    assert rows["secret"].nunique() > 2
    assert rows["e50"].nunique() > 2


def test_every_cell_ends_for_the_reason_its_config_gives(trained):
    rows = trained[0].set_index("cell_id")
    assert len(rows) == len(MIXED)
    for config in MIXED:
        row = rows.loc[config.cell_id]
        assert row["status"] in ("memorized", "budget_spent")
        assert row["episodes"] == row["updates"] * config.episodes_per_update
        if row["status"] == "memorized":
            assert row["absorbed_bits"] - row["signal_bits"] >= math.log2(0.9)
            assert not row["e90_censored"]
        else:
            assert row["episodes"] + config.episodes_per_update > config.episode_budget
    assert rows.loc[MIXED[2].cell_id, ["status", "updates"]].tolist() == ["budget_spent", 5]
    assert rows.loc[MIXED[4].cell_id, "episodes"] in range(16, 97)
    assert set(rows["status"]) == {"memorized", "budget_spent"}


def test_rows_say_what_the_curves_say(trained):
    rows, curves = trained
    for _, row in rows.iterrows():
        mine = curves[curves["cell_id"] == row["cell_id"]]
        assert mine["update"].tolist() == list(range(row["updates"] + 1))
        last = mine.iloc[-1]
        assert (last["episodes"], last["absorbed_bits"], last["observed_bits"]) == (
            row["episodes"], row["absorbed_bits"], row["observed_bits"],
        )  # fmt: skip
        signal = row["signal_bits"]
        for name, bits in (("e50", signal - 1), ("e90", signal + math.log2(0.9)), ("half_bits", signal / 2)):
            reached = mine[mine["absorbed_bits"] >= bits]
            assert row[f"{name}_censored"] == reached.empty
            assert math.isnan(row[name]) if reached.empty else row[name] == reached["episodes"].iloc[0]
        assert math.isnan(row["slope_bits"]) == row["half_bits_censored"]
        assert (mine["observed_bits"].diff().dropna() >= 0).all()
        assert mine["observed_bits"].iloc[0] == 0


def test_the_first_row_is_the_untrained_policy(trained):
    curves = trained[1]
    for config in MIXED:
        first = curves[(curves["cell_id"] == config.cell_id) & (curves["update"] == 0)].iloc[0]
        assert first["episodes"] == 0
        assert abs(first["absorbed_bits"]) < 0.4


def test_the_share_in_the_well_is_told_of_every_update_that_rewards_made(trained):
    _, curves = trained
    last = curves.groupby("cell_id")["update"].transform("max") == curves["update"]
    supervised = curves["cell_id"].isin([config.cell_id for config in MIXED if config.algorithm == "sft"])
    assert curves.loc[last | supervised, "well"].isna().all()
    assert curves.loc[~last & ~supervised, "well"].between(0, 1).all()


def test_mean_rewards_entropies_and_token_counts_are_those_of_the_episodes():
    config = TrainConfig(N=16, group_size=64, seed=3, learning_rate=1e-3)
    pack = Pack([config])
    task = encode_task(load_base_model("embedded")[1], 16, "single_step")
    tokens = 0
    for _ in range(5):
        ((secret,),) = pack.policy.roots.secrets
        walk = pack.update()
        curve = pack.drain()[1].to_pylist()[0]
        counts = walk.outcome_counts.sum(1)
        hits = counts[walk.outcomes.well_formed & (walk.outcomes.digits[:, 0] == secret)].sum()
        assert curve["mean_reward"] == hits / 64
        assert curve["well_formed"] == counts[walk.outcomes.well_formed].sum() / 64
        logprob = walk.edge_logprob.detach().double().numpy()
        surprise = [-logprob[path[path >= 0]].sum() / math.log(2) for path in walk.outcome_path]
        assert curve["entropy_bits"] == pytest.approx(counts @ np.array(surprise) / 64)
        assert curve["logprob_gap"] == 0
        tokens += int(counts @ ((walk.outcome_tokens >= 0).sum(1) + len(task.prompt_ids)))
        assert pack.state.progress.tokens.tolist() == [tokens]


def test_a_diverged_cell_fails_alone():
    diverging = [
        TrainConfig(N=8, learning_rate=1e30, seed=7),
        TrainConfig(N=8, algorithm="sft", learning_rate=1e30, seed=8),
        TrainConfig(N=8, env_type="multi_step", reward_type="per_bit", learning_rate=1e30, seed=9),
    ]
    rows, _ = train([diverging[0], MIXED[0], *diverging[1:], MIXED[3]])
    rows = rows.set_index("cell_id")
    for config in diverging:
        row = rows.loc[config.cell_id]
        assert row["status"] == "failed"
        assert "diverged" in row["error"]
    alone = train([MIXED[0], MIXED[3]])[0].set_index("cell_id")
    for name in alone.index:
        assert pd.isna(rows.loc[name, "error"])
        assert rows.loc[name, ["status", "e50", "e90"]].tolist() == alone.loc[name, ["status", "e50", "e90"]].tolist()
        assert rows.loc[name, "absorbed_bits"] == pytest.approx(alone.loc[name, "absorbed_bits"], abs=1e-3)


def test_a_failure_of_the_pack_fails_every_cell_that_was_still_training():
    pack = Pack(MIXED[:3])
    pack.update()
    pack.fail("the machine is on fire")
    assert pack.finished
    rows, curves = pack.drain()
    assert [(row["status"], row["error"], row["updates"]) for row in rows] == [
        ("failed", "the machine is on fire", 1)
    ] * 3
    assert len(curves) == 3
    assert pack.drain()[0] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dtype": "float64"},
            "configs must share model, model_files, prompt_format, prompt, bit_separator, dtype, rollout",
        ),
        ({"N": 48}, "model must be calibrated for N=48 env_type=single_step"),
        ({"model": "/no/such/folder"}, "configs must share model"),
    ],
)
def test_cells_that_can_not_train_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Pack([MIXED[0], chz.replace(MIXED[0], **changes)])


def test_a_fixed_secret_is_the_one_that_is_learned():
    rows, _ = train([TrainConfig(N=8, algorithm="sft", learning_rate=3e-3, secret=secret) for secret in (0, 5)])
    assert sorted(rows["secret"]) == [0, 5]
    assert set(rows["status"]) == {"memorized"}
