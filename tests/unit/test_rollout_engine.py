"""What needs no engine: options, ranks, waves, seeds, the split over engines, and adapters as files."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from memrl.rollout.actor_pool import EngineRecord, rollout_bundles, split_by_cell
from memrl.rollout.adapter_files import publish_adapter
from memrl.rollout.backend import SampleRequest
from memrl.rollout.vllm_actor import (
    ENGINE_RANKS,
    EngineOptions,
    cut_into_waves,
    describe_engine,
    name_for_engine,
    round_up_rank,
    spread_seed,
)

REQUEST = SampleRequest(
    cell_id="cell",
    adapter={},
    adapter_config={},
    adapter_version=0,
    prompt_ids=(1, 2),
    stop_token_ids=(0,),
    max_tokens=4,
    num_episodes=8,
    seed=0,
)

request_lists = st.lists(
    st.builds(
        lambda cell, version, episodes: replace(
            REQUEST, cell_id=f"cell-{cell}", adapter_version=version, num_episodes=episodes
        ),
        st.integers(0, 9),
        st.integers(0, 1),
        st.integers(1, 64),
    ),
    max_size=40,
)


@given(st.integers(1, 512))
def test_rounded_rank_is_the_least_that_the_engine_takes(rank: int) -> None:
    rounded = round_up_rank(rank)
    assert rounded in ENGINE_RANKS
    assert rounded >= rank
    assert not [r for r in ENGINE_RANKS if rank <= r < rounded]


@pytest.mark.parametrize("rank", [0, -1, 513])
def test_ranks_that_no_engine_takes_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"^lora_rank must lie in 1 .. 512 for rollout=vllm, got {rank}$"):
        round_up_rank(rank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loras": 0}, "max_loras must be at least 1, got 0"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must lie in \(0, 1\], got 1.5"),
        ({"dtype": "float64"}, "dtype must be float32 or bfloat16 for rollout=vllm, got float64"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        EngineOptions("model", **options)


@pytest.mark.parametrize("kind", [transformers.MixtralConfig, transformers.Qwen3MoeConfig])
def test_models_with_experts_are_for_engines_on_gpus(kind: type[transformers.PreTrainedConfig], tmp_path: Path) -> None:
    kind().save_pretrained(tmp_path)
    options = EngineOptions(str(tmp_path))
    with pytest.raises(ValueError, match=r"^vLLM's CPU build serves no adapters on models with experts$"):
        describe_engine(options, "cpu")
    assert describe_engine(options, "cuda")["enable_lora"]
    assert describe_engine(options, "cuda")["enable_mixed_moe_lora_format"]


def test_experts_are_named_as_the_engine_knows_them() -> None:
    names = ("layers.0.mlp.experts.base_layer.lora_A.weight", "layers.0.mlp.gate_proj.lora_A.weight")
    tensors = {name: np.full(1, place) for place, name in enumerate(names)}
    renamed = {
        "layers.0.block_sparse_moe.experts.base_layer.lora_A.weight": tensors[names[0]],
        names[1]: tensors[names[1]],
    }
    assert name_for_engine(tensors, "mixtral") == renamed
    assert name_for_engine(tensors, "qwen3_moe") == tensors


@given(request_lists, st.integers(1, 5))
def test_waves_hold_every_request_once_and_no_more_adapters_than_fit(requests: list, max_loras: int) -> None:
    waves = cut_into_waves(requests, max_loras)
    assert sorted(position for wave in waves for position in wave) == list(range(len(requests)))
    adapters = [{(requests[p].cell_id, requests[p].adapter_version) for p in wave} for wave in waves]
    assert all(len(wave) == max_loras for wave in adapters[:-1])
    assert len(set().union(*adapters)) == sum(map(len, adapters)), "no adapter is loaded twice"


@given(request_lists, st.integers(1, 5))
def test_a_cells_requests_share_an_engine_and_engines_share_the_work(requests: list, num_actors: int) -> None:
    shares = split_by_cell(requests, num_actors)
    assert len(shares) == num_actors
    assert sorted(position for share in shares for position in share) == list(range(len(requests)))
    cells = [{requests[p].cell_id for p in share} for share in shares]
    assert len(set().union(*cells)) == sum(map(len, cells))
    load = [sum(requests[p].num_episodes * 4 for p in share) for share in shares]
    largest = max((sum(r.num_episodes * 4 for r in requests if r.cell_id == c) for c in set().union(*cells)), default=0)
    assert max(load) <= sum(load) / num_actors + largest


def test_seeds_differ_by_all_that_tells_requests_apart() -> None:
    changes = [{}, {"seed": 1}, {"cell_id": "other"}, {"adapter_version": 1}, {"prompt_ids": (1, 3)}]
    seeds = [spread_seed(replace(REQUEST, **change)) for change in changes]  # pyright: ignore[reportArgumentType]
    assert spread_seed(replace(REQUEST)) == seeds[0]
    assert all(0 <= seed < 2**62 for seed in seeds)
    # The i-th episode is seeded with seed + i: streams of 10,000 episodes must not meet.
    assert min(abs(a - b) for i, a in enumerate(seeds) for b in seeds[:i]) > 10_000


def test_bundles_reserve_a_share_of_every_engines_node() -> None:
    engines = [
        EngineRecord(actor=i, node_id=str(i), node_ip=ip, gpu_ids=(), started=0.0)
        for i, ip in enumerate(["10.0.0.1", "10.0.0.2", "10.0.0.1"])
    ]
    bundles = rollout_bundles(engines, max_trials_per_engine=3)
    assert [set(bundle) for bundle in bundles] == [{"node:10.0.0.1"}, {"node:10.0.0.2"}]
    for (share,) in (bundle.values() for bundle in bundles):
        assert 3 * share <= 1 < 4 * share


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))


def test_peft_reads_a_published_adapter(tmp_path: Path, network: torch.nn.Module) -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0", "2"], init_lora_weights=False)
    learner = get_peft_model(network, config)  # pyright: ignore[reportArgumentType]
    x = torch.randn(5, 4)
    expected = learner(x)
    tensors = {name: tensor.numpy() for name, tensor in get_peft_model_state_dict(learner).items()}
    described = learner.peft_config["default"].to_dict()
    described["target_modules"] = {"0", "2"}  # PEFT keeps them as a set
    folder = publish_adapter(tmp_path, "first", tensors, described)

    read = PeftModel.from_pretrained(learner.unload(), folder)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(read(x), expected)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == ["0", "2"]


def test_a_name_is_published_once(tmp_path: Path) -> None:
    publish_adapter(tmp_path, "first", {"x": np.ones(2)}, {})
    with pytest.raises(ValueError, match=r"name must be new in .*, got 'first'"):
        publish_adapter(tmp_path, "first", {"x": np.zeros(2)}, {})


def test_a_published_adapter_is_whole_when_it_appears(tmp_path: Path) -> None:
    """A reader that looks all the time never sees a folder without both of its files."""
    done = threading.Event()
    incomplete = []

    def look() -> None:
        while not done.is_set():
            for folder in [f for f in tmp_path.iterdir() if not f.name.startswith(".")]:
                if len(list(folder.iterdir())) != 2:
                    incomplete.append(folder)

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(50):
        publish_adapter(tmp_path, str(i), {"x": np.ones(1000)}, {"r": 1})
    done.set()
    reader.join()
    assert not incomplete
