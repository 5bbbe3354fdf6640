"""Packs over models of any kind: bfloat16, experts, and checkpointed layers, by the models' own forward passes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers
from naive_policy import plant_forest
from test_base_model_architectures import COMMON, TOKENIZER, build_model

from memrl.config import TrainConfig
from memrl.policy import packed
from memrl.policy.activations import (
    Activations,
    RecomputedActivations,
    estimate_activation_bytes,
    is_memory_short,
)
from memrl.policy.adapter_pack import AdapterPack, describe_adapter, find_linears
from memrl.policy.autograd_network import AutogradNetwork
from memrl.policy.base_model import encode_task
from memrl.policy.packed import build_network, list_layers
from memrl.policy.trie_walk import walk_tries
from memrl.rollout.in_process import InProcessSampler, start_generators

CELLS = [
    TrainConfig(N=64, seed=1, lora_rank=2, group_size=32),
    TrainConfig(N=16, seed=2, env_type="multi_step", reward_type="per_bit", group_size=16),
]


def compute_gradient(name: str, keep_activations: Callable[[torch.nn.Module], Activations]) -> tuple[torch.Tensor, int]:
    """The adapters' gradient of a fixed loss on what one walk sampled, and the bytes that the walk kept for it."""
    dtype = torch.float32 if "experts" in name else torch.float64
    model = build_model(name).to(dtype).eval().requires_grad_(False)
    tasks = [encode_task(TOKENIZER, c.N, c.env_type) for c in CELLS]
    adapters = AdapterPack(list_layers(model), CELLS, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for cell in range(len(CELLS)):
        tensors = adapters.export_peft(cell)
        adapters.import_peft(cell, {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()})
    network = AutogradNetwork(
        model, [task.prompt_ids for task in tasks], np.arange(len(CELLS)), adapters, keep_activations(model)
    )
    forest = plant_forest([t.automaton for t in tasks], [t.answer_format.digits(5 + i) for i, t in enumerate(tasks)])
    counts = np.array([[c.group_size] for c in CELLS])
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        walk = walk_tries(network, forest, counts, InProcessSampler(CELLS, start_generators(CELLS), forest))
    weights = torch.randn(walk.edge_logprob.shape, generator=generator, dtype=dtype)
    network.backpropagate((weights * walk.edge_logprob).sum())
    return adapters.gradient.clone(), sum(kept.values())


@pytest.mark.filterwarnings("ignore:the routers of:UserWarning")
@pytest.mark.parametrize("name", ["gemma3, local and global layers", "phi3, fused projections", "mixtral, experts"])
def test_checkpointed_layers_give_the_same_gradient_for_less_memory(name):
    expected, kept_by_all = compute_gradient(name, lambda model: Activations())
    got, kept = compute_gradient(name, RecomputedActivations)
    assert expected.abs().max() > 1e-3
    tolerance = 1e-4 if "experts" in name else 1e-10
    torch.testing.assert_close(got, expected, atol=tolerance * expected.abs().max().item(), rtol=0)
    assert kept < kept_by_all / 2


def test_memory_decides_whether_layers_are_checkpointed(monkeypatch):
    model = build_model("gemma").eval().requires_grad_(False)
    linears = list(find_linears(model).values())
    prompts = [[1, 2, 3], [1, 2, 3, 4, 5]]
    # Of two layers: q 64, k and v 32 each, o 64 of 64; gate and up 96 of 64, down 64 of 96; in float32.
    per_token = 4 * 2 * (128 + 96 + 96 + 128 + 160 + 160 + 160)
    # The wider tree is that of N=64: 33 answers of at most 13 tokens.
    wanted = per_token * 2 * (5 + 33 * 13)
    assert estimate_activation_bytes(linears, prompts, CELLS) == wanted
    for free, kind in ((2 * wanted, Activations), (2 * wanted - 1, RecomputedActivations)):
        monkeypatch.setattr("memrl.policy.activations.measure_free_bytes", lambda device, free=free: float(free))
        assert is_memory_short(linears, prompts, CELLS) == (kind is RecomputedActivations)
        network, _ = build_network(model, prompts, CELLS)
        assert isinstance(network, AutogradNetwork)
        assert type(network._activations) is kind


@pytest.mark.parametrize("name", ["mixtral, experts", "qwen3 with experts"])
def test_the_user_is_told_what_has_no_adapters(name):
    model, config = build_model(name), TrainConfig(N=16, lora_rank=2)
    with pytest.warns(
        UserWarning, match=r"^the routers of \w+ have no adapters: its 8 other linear layers and 2 blocks"
    ):
        _, adapters = build_network(model, [[1, 2]], [config])
    names = describe_adapter(config, adapters.slots)
    assert names["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert names["target_parameters"] == ["experts.down_proj", "experts.gate_up_proj"]


def test_experts_of_a_kind_of_their_own_have_no_adapters():
    config = transformers.Llama4TextConfig(
        **COMMON, num_local_experts=96, num_experts_per_tok=1, intermediate_size_mlp=48
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.warns(
        UserWarning, match=r"^the experts and routers of \w+ have no adapters: its \d+ other linear layers "
    ):
        groups = list_layers(model)
    names = {name for group in groups for name in group}
    assert not [name for name in names if "router" in name or ".experts." in name]
    # As wide as there are experts, and no router.
    assert "model.layers.0.feed_forward.shared_expert.gate_proj" in names


def test_a_model_without_linear_layers_is_refused():
    config = transformers.GPT2Config(vocab_size=len(TOKENIZER), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = 1
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"^model must have linear layers .* beside its head, got GPT2LMHeadModel$"):
        build_network(model, [[1, 2]], [TrainConfig(N=16)])


@pytest.mark.filterwarnings("ignore:the routers of:UserWarning")
@pytest.mark.parametrize("name", ["mixtral, experts", "qwen3 with experts", "gemma"])
def test_a_bfloat16_model_learns_a_secret_by_float32_adapters(name):
    """Supervised, since a random model's prior is no place to explore from."""
    model = build_model(name).to(torch.bfloat16).eval().requires_grad_(False)
    cell = TrainConfig(N=16, algorithm="sft", lora_rank=8, learning_rate=3e-3, dtype="bfloat16")
    task = encode_task(TOKENIZER, cell.N, cell.env_type)
    network, adapters = build_network(model, [task.prompt_ids], [cell])
    assert isinstance(network, AutogradNetwork)
    assert adapters.parameters.dtype == torch.float32
    forest, counts = plant_forest([task.automaton], [task.answer_format.digits(11)]), np.array([[1]])
    sampler = InProcessSampler([cell], start_generators([cell]), forest)
    absorbed = []
    for _ in range(40):
        walk = walk_tries(network, forest, counts, sampler)
        absorbed.append(float(walk.secret_log2[0]) + math.log2(cell.N))
        network.backpropagate(-walk.edge_logprob.sum())
        adapters.update()
    assert absorbed[0] < 0
    assert absorbed[-1] > math.log2(0.9 * cell.N)


def test_a_bfloat16_model_on_a_cpu_is_called_slow_once(caplog):
    packed._warn_of_bfloat16.cache_clear()
    model = build_model("gemma").to(torch.bfloat16)
    for _ in range(2):
        build_network(model, [[1, 2]], CELLS[:1])
    assert [r.message for r in caplog.records] == [
        "dtype=bfloat16 is slow on a CPU: float32 trains packs many times as fast"
    ]
