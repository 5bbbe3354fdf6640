"""The tree pass on other architectures than the embedded one equals plain passes, so any model can be calibrated."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from memrl.policy.base_model import encode_task
from memrl.policy.calibration import compute_answer_log2, measure_prior
from memrl.policy.embedded import build_embedded_tokenizer
from memrl.policy.warmup import WarmupRecipe, attach_lora, merge_lora, warm_up

TOKENIZER = build_embedded_tokenizer()
COMMON: dict[str, Any] = {
    "vocab_size": 48,  # of the tokenizer's tokens all that prompts without a key and answers have
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**COMMON, tie_word_embeddings=False),
    "qwen3": transformers.Qwen3Config(**COMMON),
    "gemma": transformers.GemmaConfig(**COMMON),
    "gemma3, local and global layers": transformers.Gemma3TextConfig(**COMMON, sliding_window=32),
    "mistral": transformers.MistralConfig(**COMMON, sliding_window=64),
    "phi3, fused projections": transformers.Phi3Config(**COMMON, original_max_position_embeddings=128),
    "mixtral, experts": transformers.MixtralConfig(**COMMON, num_local_experts=4),
    "qwen3 with experts": transformers.Qwen3MoeConfig(
        **COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48
    ),
}


def build_model(name: str):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_tree_pass_equals_plain_passes(name):
    # torch's grouped matmul of experts takes no float64.
    dtype, tolerance = (torch.float32, 1e-4) if "experts" in name else (torch.float64, 1e-9)
    model = build_model(name).to(dtype).eval()
    task = encode_task(TOKENIZER, 12, "single_step")
    prompt, expected = len(task.prompt_ids), []
    for answer in range(12):
        ids = task.automaton.tokens([answer]).tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*task.prompt_ids, *ids]])).logits[0, prompt - 1 : -1]
        expected.append(torch.log_softmax(logits, dim=-1)[range(len(ids)), ids].sum().item() / math.log(2))
    np.testing.assert_allclose(compute_answer_log2(model, task), expected, atol=tolerance)


@pytest.mark.parametrize("name", ["qwen3", "phi3, fused projections"])
def test_lora_warm_up_calibrates_a_tied_and_a_fused_model_in_bfloat16(name):
    model = build_model(name).to(torch.bfloat16)
    task = encode_task(TOKENIZER, 8, "multi_step")
    before = measure_prior(model, task)
    adapted = attach_lora(model, rank=16, seed=0)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    warm_up(adapted, [task], WarmupRecipe(steps=100, learning_rate=3e-3))
    merged = merge_lora(adapted)
    assert merged.dtype == torch.bfloat16
    assert measure_prior(merged, task).kl_bits < 0.1 < before.kl_bits
