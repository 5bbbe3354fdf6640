"""Cells whose secret is a sequence: packed or alone, beside cells of integers, and as far as they learn."""

import numpy as np
import pytest

from memrl.config import TrainConfig
from memrl.learning.pack import Pack

SEQUENCE = {"N": 2, "env_type": "multi_step", "group_size": 8, "dtype": "float64", "n_steps": 5, "learning_rate": 3e-3}
MIXED = [
    TrainConfig(secret_length=8, reward_type="per_element", **SEQUENCE),
    TrainConfig(secret_length=12, reward_type="per_element", credit="return_to_go", lora_rank=2, **SEQUENCE),
    TrainConfig(N=64, group_size=16, batch_size=32, dtype="float64", n_steps=5),
    TrainConfig(secret_length=14, reward_type="element_count", advantage="leave_one_out", **SEQUENCE),
    TrainConfig(secret_length=4, malformed_reward=-0.5, **SEQUENCE),
    TrainConfig(secret_length=6, reward_type="distance", loss="ppo", **SEQUENCE),
    TrainConfig(secret_length=10, algorithm="sft", batch_size=2, **SEQUENCE),
]


def train(configs):
    """Each cell's rows, its curves and the last adapter that was seen of it, by cell_id."""
    pack, adapters = Pack(configs), {}
    while not pack.finished:
        adapters |= {c.cell_id: pack.state.adapters.export_peft(i) for i, c in enumerate(pack.state.configs)}
        pack.update()
    rows, curves = pack.drain()
    return {row["cell_id"]: row for row in rows}, curves.to_pandas().set_index("cell_id"), adapters


def test_sequences_train_in_a_mixed_pack_as_they_do_alone():
    rows, curves, adapters = train(MIXED)
    for config in MIXED:
        name = config.cell_id
        own_rows, own_curves, own_adapters = train([config])
        assert rows[name]["error"] is None
        assert rows[name]["signal_bits"] == config.signal_bits
        assert rows[name]["secret"] == own_rows[name]["secret"]
        for column in ("absorbed_bits", "observed_bits", "mean_reward", "well_formed", "entropy_bits"):
            np.testing.assert_allclose(curves.loc[[name]][column], own_curves[column], atol=1e-6, err_msg=column)
        for tensor, own in zip(adapters[name].values(), own_adapters[name].values(), strict=True):
            assert float((tensor - own).abs().max()) <= 1e-9


@pytest.mark.parametrize("fields", [{"algorithm": "sft", "batch_size": 1}, {"reward_type": "per_element"}])
def test_a_sequence_is_memorized(fields):
    config = TrainConfig(**SEQUENCE | {"secret_length": 8, "dtype": "float32", "n_steps": 150} | fields)
    rows, curves, _ = train([config])
    (row,) = rows.values()
    assert row["status"] == "memorized"
    assert row["absorbed_bits"] > 7.8
    assert (curves["absorbed_bits"] <= 8.0).all()
    assert curves["observed_bits"].iloc[1:].to_list() == [8.0] * (len(curves) - 1)
