"""Bits per adapter parameter: where more keys are no use, and what the verdicts make of it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from memrl.analysis.capacity import measure_capacity
from memrl.analysis.verdicts.capacity import judge_capacity

PARAMETERS = 1000


def simulate(full_bits, keys=(256, 512, 1024, 2048), ranks=(1, 2), seeds=4, **fields):
    """Cells that absorb all of 4 bits a key until `full_bits` a parameter are full, with a little noise."""
    rng, rows = np.random.default_rng(0), []
    for rank in ranks:
        for num_keys in keys:
            for seed in range(seeds):
                most = full_bits * rank * PARAMETERS * rng.normal(1.0, 0.01)
                for rate, share in ((1e-3, 0.5), (3e-3, 1.0)):
                    row = {"model": "embedded", "N": 16, "lora_rank": rank, "num_keys": num_keys, "seed": seed}
                    row |= {"signal_bits": 4.0 * num_keys, "adapter_parameters": PARAMETERS * rank}
                    row |= {"absorbed_bits": share * min(4.0 * num_keys, most), "learning_rate": rate}
                    rows.append({"algorithm": "sft", "reward_type": None, "advantage": None, **row, **fields})
    return pd.DataFrame(rows)


RL: dict[str, Any] = {"algorithm": "rl", "reward_type": "per_bit", "advantage": "rejection"}


def test_capacity_is_what_the_best_setting_absorbed_and_saturates_where_it_is_full():
    found = measure_capacity(simulate(2.0)).set_index(["lora_rank", "num_keys"])
    assert found["is_saturated"].to_dict() == {
        (1, 256): False, (1, 512): False, (1, 1024): True, (1, 2048): True,
        (2, 256): False, (2, 512): False, (2, 1024): False, (2, 2048): True,
    }  # fmt: skip
    assert found.loc[(1, 256), "bits_per_parameter"] == pytest.approx(1.024)
    row = found.loc[(1, 2048)]
    assert row["bits_per_parameter_lower"] < 2.0 < row["bits_per_parameter_upper"]


@pytest.mark.parametrize(
    ("sft", "rl", "outcomes"),
    [(2.0, 2.0, ["supported", "supported"]), (1.0, 0.4, ["refuted", "refuted"]), (3.0, 2.9, ["refuted", "supported"])],
)
def test_verdicts_follow_the_bits(sft, rl, outcomes):
    cells = pd.concat(
        [simulate(sft, keys=(256, 512, 1024, 2048, 4096)), simulate(rl, keys=(512, 1024, 2048, 4096), **RL)]
    )
    verdicts = judge_capacity(cells.reset_index(drop=True))
    assert [(v.hypothesis.name, v.outcome) for v in verdicts] == list(zip(("H7", "H8"), outcomes, strict=True))
    assert verdicts[1].value == pytest.approx(rl / sft, rel=0.05)


def test_where_it_is_not_full_nothing_is_decided():
    (verdict,) = judge_capacity(simulate(2.0, keys=(256, 512)))
    assert (verdict.outcome, verdict.value) == ("undecided", pytest.approx(1.51, abs=0.03))
    assert "2 of 2 ranks were not saturated" in verdict.sentence


def test_cells_without_keys_say_nothing_of_capacity():
    cells = simulate(2.0)
    assert judge_capacity(cells.assign(num_keys=np.nan)) == []
