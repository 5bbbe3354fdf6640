"""vLLM's own loading code ends up with one A and B for each expert of a mixture: the cell's.

Its kernels for adapters on experts need a GPU; all that comes before them runs here: names, checks, conversion, and the
buffers that the kernels read.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from vllm_buffers import Buffers, read_buffers

from memrl.config import TrainConfig
from memrl.policy.adapter_pack import AdapterPack, describe_adapter
from memrl.policy.packed import list_layers
from memrl.rollout.backend import SampleRequest

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore:the routers of:UserWarning")]

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96
    ),
}
BLOCKS = {"mixtral": "model.layers.{}.block_sparse_moe.experts", "qwen3_moe": "model.layers.{}.mlp.experts"}
CELLS = [TrainConfig(N=16, seed=1, lora_rank=2), TrainConfig(N=16, seed=2, lora_rank=8, lora_alpha=8.0)]


def build_pack(kind: str, folder: Path) -> AdapterPack:
    """Saves a model of random weights; returns adapters of random weights on it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    model.save_pretrained(folder)
    adapters = AdapterPack(list_layers(model), CELLS, dtype=torch.float32)
    for cell in range(len(CELLS)):
        adapters.import_peft(cell, {n: torch.randn(t.shape) for n, t in adapters.export_peft(cell).items()})
    return adapters


def request_cell(adapters: AdapterPack, cell: int) -> SampleRequest:
    tensors = {name: tensor.numpy() for name, tensor in adapters.export_peft(cell).items()}
    described = describe_adapter(CELLS[cell], list(adapters.slots))
    return SampleRequest(CELLS[cell].cell_id, tensors, described, 0, (1, 2), (3,), 4, 1, 0)


def load_apart(folder: Path, requests: list[SampleRequest], is_mixed: bool = True) -> list[Buffers]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(read_buffers, str(folder), requests, is_mixed).result()


def list_expected(adapters: AdapterPack, cell: int, path: str) -> dict[str, np.ndarray]:
    """A, and B with the cell's scale, of each expert as vLLM's buffers hold them."""
    found = {}
    for leaf in ("gate_up_proj", "down_proj"):
        slot = adapters.slots[f"{path}.{leaf}"]
        found[leaf] = (
            adapters.view_blocks_A(adapters.parameters, slot)[cell].numpy(),
            (adapters.view_blocks_B(adapters.parameters, slot)[cell] * adapters.scale[cell]).mT.numpy(),
        )
    (A, B), (down_A, down_B) = found["gate_up_proj"], found["down_proj"]
    gate_B, up_B = np.split(B, 2, axis=1)
    return {"gate_A": A, "up_A": A, "down_A": down_A, "gate_B": gate_B, "up_B": up_B, "down_B": down_B}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_expert_gets_the_cells_own_matrices(kind: str, tmp_path: Path) -> None:
    adapters = build_pack(kind, tmp_path)
    loaded = load_apart(tmp_path, [request_cell(adapters, cell) for cell in range(len(CELLS))])
    for cell, buffers in enumerate(loaded):
        assert sorted(buffers) == [BLOCKS[kind].format(layer) for layer in range(2)]
        for layer in range(2):
            expected = list_expected(adapters, cell, f"model.layers.{layer}.mlp.experts")
            got = buffers[BLOCKS[kind].format(layer)]
            for name, tensor in expected.items():
                np.testing.assert_allclose(got[name], tensor, rtol=1e-6, err_msg=f"{cell} {layer} {name}")
    first, second = (buffers[BLOCKS[kind].format(0)]["gate_A"] for buffers in loaded)
    assert not first[:, 2:].any()
    assert second[:, 2:].all()


def test_vllm_refuses_the_layout_where_it_is_not_told_of_it(tmp_path: Path) -> None:
    adapters = build_pack("mixtral", tmp_path)
    with pytest.raises(ValueError, match="enable_mixed_moe_lora_format"):
        load_apart(tmp_path, [request_cell(adapters, 0)], is_mixed=False)
