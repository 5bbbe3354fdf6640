"""Models whose layers see more or less than the mask says are refused, and attention over all tokens is not."""

import pytest
import torch
import transformers

from memrl.policy.base_model import encode_task
from memrl.policy.calibration import measure_prior
from memrl.policy.embedded import build_embedded_tokenizer
from memrl.policy.walk_check import check_walk

TOKENIZER = build_embedded_tokenizer()
SIZES = {
    "vocab_size": 48,  # of the tokenizer's tokens all that prompts without a key and answers have
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
ATTENTION = {
    **SIZES,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
    "layer_types": ["linear_attention", "full_attention"],
}
FAIR = {
    "llama": transformers.LlamaConfig(**ATTENTION),
    "qwen3": transformers.Qwen3Config(**ATTENTION),
    "gemma3, whose window is long enough": transformers.Gemma3TextConfig(**ATTENTION, sliding_window=32),
    "mistral": transformers.MistralConfig(**ATTENTION, sliding_window=None),
}
UNFAIR = {
    "mamba2, which is recurrent": transformers.Mamba2Config(
        **SIZES, num_heads=8, head_dim=16, state_size=16, n_groups=2, bos_token_id=1
    ),
    "qwen3-next, half recurrent": transformers.Qwen3NextConfig(**ATTENTION, **EXPERTS, **DELTA),
    "mistral, with a short window": transformers.MistralConfig(**ATTENTION, sliding_window=4),
    "gemma3, with a short window": transformers.Gemma3TextConfig(**ATTENTION, sliding_window=4),
}
PROMPTS = [(12, "single_step"), (64, "multi_step")]


def build_model(config, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAIR)
def test_attention_over_all_tokens_passes(name, dtype):
    model = build_model(FAIR[name], dtype)
    for N, env_type in PROMPTS:
        check_walk(model, encode_task(TOKENIZER, N, env_type))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", UNFAIR)
def test_what_reads_the_sequence_as_it_lies_is_refused(name, dtype):
    model = build_model(UNFAIR[name], dtype)
    for N, env_type in PROMPTS:
        with pytest.raises(
            ValueError, match=r"^model must score a tree of answers as it scores each alone .* bits off$"
        ):
            measure_prior(model, encode_task(TOKENIZER, N, env_type))
