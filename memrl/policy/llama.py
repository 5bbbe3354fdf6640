"""Llama and Qwen3 decoders: which of them kernels.c computes, and which of their layers read the same input."""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM


class Norm(Protocol):
    """A root-mean-square norm of such a decoder."""

    weight: Tensor
    variance_epsilon: float


class Attention(Protocol):
    """What kernels.c is told of a layer's attention; the norms are Qwen3's."""

    head_dim: int
    scaling: float
    q_norm: Norm
    k_norm: Norm


class DecoderLayer(Protocol):
    """What kernels.c is told of a decoder layer, beside its linear layers."""

    self_attn: Attention
    input_layernorm: Norm
    post_attention_layernorm: Norm


def is_supported(model: PreTrainedModel) -> bool:
    """Whether the model is a Llama or Qwen3 decoder without biases or sliding windows, in float32 or float64."""
    config = model.config
    return (
        type(model) in (LlamaForCausalLM, Qwen3ForCausalLM)
        and not any(name.endswith(".bias") for name, _ in model.named_parameters())
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and model.dtype in (torch.float32, torch.float64)
    )


def list_siblings(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """A supported model's linear layers, siblings together: q k v, o, gate up, down of each layer."""
    siblings = []
    parts = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
    for index in range(model.config.num_hidden_layers):
        for part in parts:
            names = [f"model.layers.{index}.{name}" for name in part]
            siblings.append({name: model.get_submodule(name) for name in names})
    return siblings
