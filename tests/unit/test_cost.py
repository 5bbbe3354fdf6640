"""What a sweep is told to cost: which packs are tried out, and what is made of what they took."""

from dataclasses import replace

import pytest

from memrl.config import TrainConfig
from memrl.sweep.cost import _describe, choose_packs, describe_cost, forecast_cost
from memrl.sweep.execution import Execution
from memrl.sweep.measure import measure_pack
from memrl.sweep.pack_cost import PackCost
from memrl.sweep.plan import Plan, plan_packs
from memrl.tables.places import EPISODES_TO_MEMORIZE
from memrl.tables.rows import failed_row
from memrl.tables.store import TableStore

CELLS = [TrainConfig(N=4, seed=seed, learning_rate=1e-2, n_steps=50) for seed in range(8)]
COST = PackCost(start_s=2.0, seconds=4.0, updates=40, live=8, memory_bytes=300, checkpoint_bytes=2400)


@pytest.fixture
def store(tmp_path, monkeypatch) -> TableStore:
    monkeypatch.chdir(tmp_path)  # no reference is there
    store = TableStore(str(tmp_path / "own"))
    store.create()
    return store


def test_a_pack_of_each_shape_is_tried_and_more_where_more_trials_run_at_once():
    packs = [[TrainConfig(N=16, lora_rank=rank, seed=seed)] for rank in (1, 4) for seed in range(3)]
    assert [pack[0].lora_rank for pack in choose_packs(packs, 1)] == [1, 4]
    assert len(choose_packs(packs, 4)) == 4
    assert len(choose_packs([[TrainConfig(lora_rank=rank)] for rank in range(1, 20)], 2)) == 8


def test_time_is_that_of_the_runs_of_an_earlier_sweep_at_the_rate_of_the_packs_tried(store):
    """Eight cells whose budget of 50 updates all runs spent: 50 passes of 0.1 s, and what starting takes."""
    plan = plan_packs(CELLS, Execution(num_trials=1), 1, 0)
    runs = [failed_row(replace_seed(seed), "") | {"status": "budget_spent", "updates": 50} for seed in range(100, 400)]
    assert forecast_cost(plan, [(CELLS[0], COST)], "tiny", store).lengths == ""
    store.append(EPISODES_TO_MEMORIZE, runs)
    cost = forecast_cost(plan, [(CELLS[0], COST)], "tiny", store)
    assert cost.lengths == store.address
    assert cost.seconds == pytest.approx(5.0 + 3 * 2.0, rel=0.1)
    assert (cost.at_once, cost.memory_bytes, cost.checkpoint_bytes, cost.adapter_bytes) == (1, 300, 2400, 0)
    kept = forecast_cost(replace(plan, adapters="adapters"), [(CELLS[0], COST)], "tiny", store)
    assert kept.adapter_bytes == 8 * 100


def test_on_gpus_a_sweep_is_paid_by_their_hours(store):
    plan = Plan([CELLS[:4], CELLS[4:]], 2, device="cuda", num_threads=4)
    slow = replace(COST, seconds=1000 * COST.seconds)
    cost = forecast_cost(plan, [(CELLS[0], slow)], "tiny", store)
    time, *_ = _describe(cost, plan, 1)
    assert f", {2 * cost.seconds / 3600:.1f} GPU-hours; by 1 packs" in time
    assert "core-hours" in _describe(cost, replace(plan, device="cpu"), 1)[0]


def replace_seed(seed: int) -> TrainConfig:
    return TrainConfig(N=4, seed=seed, learning_rate=1e-2, n_steps=50)


def test_a_pack_is_trained_for_as_long_as_it_is_told_and_what_it_took_is_measured():
    # At this rate none of them ends.
    cells = [TrainConfig(N=16, seed=seed, learning_rate=1e-6, n_steps=10_000) for seed in range(3)]
    cost = measure_pack(cells, "cpu", 1, 0.3)
    assert cost.problem == ""
    assert cost.updates > 0
    assert cost.seconds >= 0.3
    assert cost.live == 3
    # Three adapters of rank 8 with two moments each, and no less than a process that holds torch.
    assert cost.checkpoint_bytes > 3 * 3 * 10_000
    assert 1e8 < cost.memory_bytes < 1e11


def test_a_pack_that_can_not_train_is_said(store):
    assert "must be calibrated for N=48" in measure_pack([TrainConfig(N=48)], "cpu", 1, 0.1).problem
    with pytest.raises(ValueError, match=r"cells must be such that they can train, got: .*calibrated for N=48"):
        describe_cost("tiny", [TrainConfig(N=48)], store, Execution(device="cpu"))


def test_of_a_model_that_is_still_to_be_calibrated_nothing_is_told_but_that(store):
    cells = [TrainConfig(N=4, model="smollm2-135m@0123456789ab")]
    told = describe_cost("tiny", cells, store, Execution(device="cpu"))
    assert told[1:] == ["time: not known before smollm2-135m is calibrated, which the sweep does first"]
