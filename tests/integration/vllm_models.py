"""Random-weight models of many architectures, adapters by PEFT, and the learner's side of a log-probability."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from memrl.rollout.backend import SampledEpisodes, SampleRequest

VOCABULARY = 64
STOP = 3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ARCHITECTURES: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, tie_word_embeddings=False),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, tie_word_embeddings=True),
    "gemma": lambda: transformers.GemmaConfig(**_COMMON),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=None),
    # Phi's heads share hidden_size between them, and its projections are fused: qkv_proj, gate_up_proj.
    "phi3": lambda: transformers.Phi3Config(
        **(_COMMON | {"hidden_size": 128, "original_max_position_embeddings": 256, "sliding_window": None})
    ),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter as a learner hands it over.

    Attributes:
        tensors: under PEFT's names.
        config: PEFT's adapter_config.json.
    """

    tensors: dict[str, np.ndarray]
    config: dict[str, Any]


def build_model(architecture: str, folder: Path) -> str:
    """Saves a model of random float32 weights; returns its folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # norms that differ by channel, so that a norm left out would show
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def wrap_with_adapter(folder: str, rank: int, seed: int, alpha: int = 32) -> PeftModel:
    """The learner: a model under PEFT with an adapter of random A and B on every linear layer but the head."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", init_lora_weights=True)
    learner = get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if "lora_" in name:
                width = parameter.shape[1] if "lora_A" in name else 40.0 * alpha**2 / rank
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    return learner


def export_adapter(learner: PeftModel) -> Adapter:
    """What PEFT would write to disk."""
    tensors = {name: tensor.numpy() for name, tensor in get_peft_model_state_dict(learner).items()}
    return Adapter(tensors, dict(learner.peft_config["default"].to_dict()))


def make_request(
    adapter: Adapter, prompt: list[int], *, cell_id: str = "cell", version: int = 0, episodes: int = 16, seed: int = 0
) -> SampleRequest:
    """A request for answers of up to six tokens."""
    return SampleRequest(cell_id, adapter.tensors, adapter.config, version, tuple(prompt), (STOP,), 6, episodes, seed)


def score(learner: torch.nn.Module, prompt: list[int], tokens: np.ndarray) -> np.ndarray:
    """The learner's log-probability of each sampled token, nats, 0 at padding; (episodes, max_tokens)."""
    answers = torch.from_numpy(np.maximum(tokens, 0))
    inputs = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
    with torch.no_grad():
        logits = learner(input_ids=inputs).logits[:, len(prompt) - 1 : -1].double()
    picked = logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]
    return np.where(tokens >= 0, picked.numpy(), 0.0)


def gap(learner: torch.nn.Module, prompt: list[int], episodes: SampledEpisodes) -> float:
    """The largest |learner - rollout| log-probability of a sampled token, nats."""
    return float(np.abs(score(learner, prompt, episodes.tokens) - episodes.rollout_logprobs).max())
