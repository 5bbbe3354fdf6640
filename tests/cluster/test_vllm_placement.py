"""Three Ray nodes: where engines and trials go, what a trial waits for, and a sweep of more trials than nodes."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from memrl.policy.model_folder import check_model_folder
from memrl.rollout.actor_pool import (
    COLOCATED_ENGINE_GPUS,
    COLOCATED_LEARNER_GPUS,
    EngineRecord,
    VLLMRollout,
    colocated_bundles,
    rollout_bundles,
    start_rollout_actors,
)
from memrl.rollout.vllm_actor import EngineOptions

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
LEARNER = {"CPU": 1.0, "GPU": 1.0}


@pytest.fixture
def rollout(three_nodes: Any) -> Iterator[VLLMRollout]:
    """One engine, which takes a logical GPU."""
    rollout = start_rollout_actors(EngineOptions(check_model_folder("embedded"), max_loras=2), num_gpus=1)
    yield rollout
    rollout.shut_down()


def reserve(engines: list[EngineRecord], learner: dict[str, float] = LEARNER) -> PlacementGroup:
    """What Tune asks for before it starts a trial: the learner's bundle, then the rollout bundles."""
    return placement_group([learner, *rollout_bundles(engines, max_trials_per_engine=1)], strategy="PACK")


def is_ready(group: PlacementGroup, seconds: float) -> bool:
    return group.wait(timeout_seconds=seconds)


def test_placement_is_as_designed(three_nodes: Any, rollout: VLLMRollout) -> None:
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes()}
    (engine,) = rollout.stats()["engines"]
    workers = {node.node_ip_address for node in three_nodes.worker_nodes}
    assert engine.node_ip in workers, "the head has no CPU to give"
    assert engine.gpu_ids == ("0",)
    assert not placement_group_table(), "the engine is in no placement group"
    assert ray.available_resources()["GPU"] == 1

    # The trial's learner gets the GPU that is left, and its rollout bundle lies with the engine.
    first = reserve([engine])
    assert is_ready(first, 60)
    (other,) = workers - {engine.node_ip}
    assert placement_group_table(first)["bundles_to_node_id"] == {0: nodes[other], 1: nodes[engine.node_ip]}

    # CPUs are left for a second learner, but no room at the engine, so nothing of the trial starts.
    second = reserve([engine], learner={"CPU": 1.0})
    assert ray.available_resources()["CPU"] >= 1
    assert not is_ready(second, 3)
    remove_placement_group(first)
    assert is_ready(second, 60)
    remove_placement_group(second)


def test_a_sweep_of_more_trials_than_nodes_finishes(three_nodes: Any, tmp_path: Path) -> None:
    engines_before = count_engines()
    rows = run_sweep(three_nodes, tmp_path, "num_rollout_actors=2")
    assert len(rows) == 7 * 3, "packs of four: six trials on two nodes, each beside an engine"
    assert Counter(rows["status"])["failed"] == 0, rows["error"].dropna().tolist()
    assert (rows["rollout"] == "vllm").sum() == 6 * 3, "all but sft, which samples nothing"
    assert count_engines() - engines_before == 2
    assert len(list((tmp_path / "logs").glob("VLLMRolloutActor-*.log"))) == 2


def test_colocated_trials_share_their_engines_gpus(three_nodes: Any) -> None:
    """Two GPUs, an engine on each: the trials that sample beside them fit nowhere else."""
    options = EngineOptions(check_model_folder("embedded"), max_loras=2, colocated=True)
    rollout = start_rollout_actors(options, 2, pool="colocated")
    engines = rollout.stats()["engines"]
    assert len({engine.node_id for engine in engines}) == 2, "two engines never share a GPU"
    assert ray.available_resources()["GPU"] == pytest.approx(2 * (1 - COLOCATED_ENGINE_GPUS))

    @ray.remote
    def find_engine() -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), len(VLLMRollout.connect("colocated", colocated=True).actors)

    for engine, bundles in zip(engines, colocated_bundles(engines, num_cpus=1.0), strict=True):
        group = placement_group(bundles)
        assert is_ready(group, 60)
        beside = PlacementGroupSchedulingStrategy(group)
        wanted = {"num_cpus": 1, "num_gpus": COLOCATED_LEARNER_GPUS, "scheduling_strategy": beside}
        assert ray.get(find_engine.options(**wanted).remote()) == (engine.node_id, 1)
        second = placement_group(bundles)
        assert not is_ready(second, 3), "one trial an engine"
        remove_placement_group(second)
        remove_placement_group(group)
    rollout.shut_down()


def test_a_colocated_sweep_finishes(three_nodes: Any, tmp_path: Path) -> None:
    rows = run_sweep(three_nodes, tmp_path, "colocated=True", "num_rollout_actors=2", "n_steps=20")
    assert len(rows) == 7 * 3
    assert Counter(rows["status"])["failed"] == 0, rows["error"].dropna().tolist()


def run_sweep(three_nodes: Any, folder: Path, *words: str) -> pd.DataFrame:
    """The cells of a sweep of six packs at the most, run on the cluster by the command."""
    command = [sys.executable, "sweeps/launch.py", "grid=smoke", "N=16", "seeds=1,2,3", "rollout=vllm", "pack_size=4"]
    command += [f"address={three_nodes.address}", "device=cpu", f"results={folder}", *words]
    environment = os.environ | {"RAY_ADDRESS": "", "COLUMNS": "120"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=900, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return pd.read_parquet(folder / "episodes_to_memorize").query("agent == 'lora'")


def count_engines() -> int:
    """Engines that were ever started on this cluster, dead ones too, by Ray's own count of actors."""
    from ray._private.state import state

    actors = state.actor_table(None)
    return sum(actor["ActorClassName"] == "VLLMRolloutActor" for actor in actors.values())


def test_no_trial_starts_once_the_engines_node_is_lost(three_nodes: Any, rollout: VLLMRollout) -> None:
    (engine,) = rollout.stats()["engines"]
    bundles = [{"CPU": 1.0}, *rollout_bundles([engine])]
    ready = placement_group(bundles)
    assert is_ready(ready, 60)
    remove_placement_group(ready)
    (lost,) = [node for node in three_nodes.worker_nodes if node.node_ip_address == engine.node_ip]
    three_nodes.remove_node(lost)
    assert not is_ready(placement_group(bundles), 3)
