"""Cells of many keys: one policy, exact bits over all keys, the same alone, packed and resumed."""

from contextlib import suppress
from typing import Any, get_args

import chz
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from memrl.config import Advantage, TrainConfig
from memrl.learning import pack as packs
from memrl.learning.pack import Pack
from memrl.learning.roots import draw_keys
from memrl.policy.base_model import load_base_model
from memrl.task.answer_format import key_digits

KEYED: dict[str, Any] = {"N": 8, "num_keys": 6, "dtype": "float64", "n_steps": 7, "learning_rate": 3e-3}


def keyed(**fields: Any) -> dict[str, Any]:
    """The fields of a cell of keys, some of them others."""
    return KEYED | fields


GROUPS: dict[str, Any] = {"group_size": 4, "batch_size": 16}
BITS: dict[str, Any] = {"env_type": "multi_step", "reward_type": "per_bit"}
MIXED = [
    TrainConfig(**KEYED, **GROUPS, advantage="rejection"),
    TrainConfig(**KEYED, algorithm="sft", batch_size=4, lora_rank=2),
    TrainConfig(N=16, group_size=8, dtype="float64", n_steps=4),
    TrainConfig(**KEYED | {"num_keys": 11}, **GROUPS, **BITS, measure_every=2, entropy_bonus=0.01, kl_penalty=0.01),
    TrainConfig(**KEYED | {"num_keys": 3, "n_steps": 5}, **GROUPS, reward_type="distance", lora_rank=16),
    TrainConfig(
        **KEYED | {"N": 4}, **GROUPS, env_type="multi_step", secret_length=3, reward_type="per_element", seed=3
    ),
]
"""The widest leaves first, and cells without keys stand among those that have some."""


@pytest.fixture(autouse=True)
def any_base(monkeypatch, tmp_path):
    """These tests are about keys and not about the base, which need not answer them uniformly."""
    monkeypatch.setattr(packs, "check_calibrated", lambda *about: None)
    (tmp_path / "operator_rewards.py").write_text(
        "def nearness(guess, secret, N):\n    return -abs(guess - secret) / N\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def train(pack, updates=None):
    curves = []
    while not pack.finished and (updates is None or len(curves) < updates):
        pack.update()
        curves.append(pack.drain()[1])
    return pa.concat_tables(curves).to_pandas()


def score_plainly(pack, cell):
    """log2 P of each key's secret by a forward pass each, through merged weights; norms are float32 there."""
    config = pack.state.configs[cell]
    model, _ = load_base_model("embedded", "float64")
    tensors = pack.state.adapters.export_peft(cell)
    for name in {n.rpartition(".lora_")[0] for n in tensors}:
        A, B = (tensors[f"{name}.lora_{side}.weight"] for side in "AB")
        weight = model.get_submodule(name.removeprefix("base_model.model.")).weight
        weight.data += config.lora_alpha / config.lora_rank * (B @ A)
    scores, task = [], pack.policy.tasks[cell]
    for prompt, digits in zip(pack.policy.keys[cell].prompts, key_digits(config), strict=True):
        answer = task.automaton.tokens(digits).tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        scores.append(torch.log_softmax(logits, -1)[range(len(answer)), answer].sum().item() / np.log(2))
    return np.array(scores)


@pytest.mark.parametrize("cell", [0, 1, 3, 5])
def test_absorbed_bits_are_the_sum_over_all_keys(cell):
    pack = Pack([MIXED[cell]])
    for _ in range(4):
        pack.update()
    expected = pack.state.configs[0].signal_bits + score_plainly(pack, 0).sum()
    pack.state.progress.next_measurement[:] = 0
    pack.update()
    assert pack.state.progress.absorbed_bits[0] == pytest.approx(expected, abs=1e-4)


def test_packed_a_cell_of_keys_gets_what_it_gets_alone():
    together = train(Pack(MIXED)).set_index("cell_id")
    for config in MIXED:
        alone, packed = train(Pack([config])), together.loc[[config.cell_id]]
        for name in ("update", "episodes", "observed_bits", "absorbed_bits", "mean_reward", "gradient_norm"):
            np.testing.assert_allclose(
                packed[name], alone[name], rtol=0, atol=1e-6 if name == "gradient_norm" else 1e-9
            )


def test_saved_in_the_middle_it_goes_on_to_the_bit(tmp_path):
    whole = train(Pack(MIXED))
    pack = Pack(MIXED)
    begun = train(pack, updates=5)
    pack.save(tmp_path)
    resumed = pd.concat([begun, train(Pack.load(tmp_path))], ignore_index=True)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_curves_have_a_row_at_each_measurement_and_at_start_and_end():
    curves = train(Pack(MIXED))
    by_cell = {config.cell_id: curves.loc[curves["cell_id"] == config.cell_id, "update"].tolist() for config in MIXED}
    assert by_cell[MIXED[3].cell_id] == [0, 2, 4, 6, 7]
    assert by_cell[MIXED[0].cell_id] == [0, 5, 7]
    assert by_cell[MIXED[2].cell_id] == [0, 1, 2, 3, 4]


def test_every_key_is_asked_once_before_any_twice_in_an_order_of_the_cell_s_own():
    pack = Pack([MIXED[3], TrainConfig(**keyed(num_keys=11), algorithm="sft", batch_size=4, lora_rank=2)])
    asked = []
    for _ in range(5):
        asked.append([pack.policy.roots.key[pack.policy.roots.cell == cell].tolist() for cell in range(2)])
        pack.update()
    for cell, config in enumerate(pack.state.configs):
        order = [key for of_update in asked for key in of_update[cell]]
        assert sorted(order[:11]) == list(range(11))
        assert len(set(order[11:])) == 9
        assert order[:4] == draw_keys(config, 0).tolist()
    assert asked[0][0] != asked[0][1]


def test_a_pack_of_keys_learns_its_secrets_and_counts_what_was_used():
    config = TrainConfig(N=4, num_keys=5, algorithm="sft", batch_size=5, learning_rate=1e-2, n_steps=200)
    pack = Pack([config])
    while not pack.finished:
        pack.update()
    ((row,), _) = pack.drain()
    assert row["status"] == "memorized"
    assert row["absorbed_bits"] >= 0.9 * row["signal_bits"] == 9.0
    assert row["observed_bits"] == row["signal_bits"] == 10.0
    assert (row["num_keys"], row["secret"], row["channel"]) == (5, None, "keys-5/sft")
    assert row["episodes"] == 5 * row["updates"]
    assert not row["half_bits_censored"]


@pytest.mark.parametrize("explore", ["policy", "thompson", "greedy"])
def test_what_was_told_of_each_key_is_distilled(explore):
    size: dict[str, Any] = (
        {"group_size": 1, "batch_size": 6} if explore == "greedy" else {"group_size": 4, "batch_size": 24}
    )
    config = TrainConfig(
        N=8, num_keys=6, algorithm="distill", reward_type="binary", explore=explore, updates_per_batch=3,
        learning_rate=4e-3, n_steps=60, measure_every=10, **size,
    )  # fmt: skip
    pack = Pack([config])
    curves = train(pack)
    assert curves["observed_bits"].iloc[-1] == pytest.approx(18.0)
    assert curves["absorbed_bits"].max() > 9.0


def test_an_observer_hears_of_each_key_what_it_was_told_and_no_more():
    config = TrainConfig(**keyed(dtype="float32"), group_size=2, batch_size=4)
    pack = Pack([config])
    secrets, possible = key_digits(config)[:, 0], [set(range(8)) for _ in range(6)]
    for _ in range(7):
        roots = pack.policy.roots
        walk = pack.update()
        for root, guess, fine in zip(
            walk.outcome_root, walk.outcomes.digits[:, 0], walk.outcomes.well_formed, strict=True
        ):
            key = roots.key[root]
            if fine:
                possible[key] = {int(guess)} if guess == secrets[key] else possible[key] - {int(guess)}
    assert [pack.state.observer.candidates(0, key).tolist() for key in range(6)] == [sorted(p) for p in possible]
    told = sum(3.0 - np.log2(len(p)) for p in possible)
    assert pack.state.observer.observed_bits.tolist() == pytest.approx([told])


CHANNELS: list[dict[str, Any]] = [
    {"reward_type": "binary"},
    {"reward_type": "binned_distance", "reward_bins": 3},
    {"reward_type": "distance", "malformed_reward": -0.5},
    {"reward_type": "operator_rewards:nearness"},
    BITS,
    {**BITS, "credit": "return_to_go"},
    {"env_type": "multi_step", "reward_type": "bit_count"},
    *(
        {"env_type": "multi_step", "secret_length": 2, "N": 4, "reward_type": name}
        for name in ("binary", "distance", "per_element", "element_count")
    ),
]


def list_cells():
    """Every channel by every advantage that it allows, and by SFT."""
    for channel in CHANNELS:
        fields: dict[str, Any] = KEYED | {"dtype": "float32", "n_steps": 2} | channel
        yield TrainConfig(**fields, algorithm="sft", batch_size=4)
        for advantage in get_args(Advantage):
            with suppress(ValueError):  # rejection and maxrl are for rewards of 0 or 1
                objective: dict[str, Any] = {"advantage": advantage, "entropy_bonus": 0.1 * (advantage == "maxrl")}
                yield TrainConfig(**fields, **GROUPS, **objective)


@pytest.mark.parametrize("updates_per_batch", [1, 2])
def test_every_channel_and_objective_trains_on_keys(updates_per_batch):
    replaced = (chz.replace(cell, updates_per_batch=updates_per_batch) for cell in list_cells())
    cells = list({cell.cell_id: cell for cell in replaced}.values())
    assert len(cells) > 60
    pack = Pack(cells)
    before = {c.cell_id: pack.state.adapters.export_peft(i) for i, c in enumerate(cells)}
    while not pack.finished:
        after = {c.cell_id: pack.state.adapters.export_peft(i) for i, c in enumerate(pack.state.configs)}
        pack.update()
    rows, curves = pack.drain()
    assert {row["status"] for row in rows} == {"budget_spent"}
    assert len(rows) == len(cells)
    assert np.isfinite(curves["absorbed_bits"].to_numpy()).all()
    assert all(0 <= row["observed_bits"] <= row["signal_bits"] + 1e-9 for row in rows)
    sft = [row["cell_id"] for row in rows if row["algorithm"] == "sft"]
    for name in sft:
        assert any((after[name][tensor] != before[name][tensor]).any() for tensor in after[name])


def test_every_listed_channel_is_distilled_on_keys():
    cells = [
        TrainConfig(**KEYED | {"dtype": "float32", "n_steps": 2} | channel, **GROUPS, algorithm="distill")
        for channel in CHANNELS
        if "credit" not in channel  # which nobody asks for here
    ]
    pack = Pack(cells)
    while not pack.finished:
        pack.update()
    assert {row["status"] for row in pack.drain()[0]} == {"budget_spent"}
