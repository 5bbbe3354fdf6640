"""A pack over a random-weight base of any size: the update itself, without calibration and tables.

A random base is not calibrated, so a Pack would refuse it. Here the sampler keeps to the tokens that some answer has,
which gives tries as full as those of a calibrated base; what a policy costs does not depend on how good it is.
"""

from collections.abc import Sequence
from typing import Any

import chz
import numpy as np
import torch
from model_sizes import check_model_size
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from memrl.config import TrainConfig
from memrl.learning.policy import PackPolicy
from memrl.learning.state import PackState
from memrl.learning.update import update
from memrl.policy.base_model import EncodedTask
from memrl.policy.embedded import build_embedded_tokenizer
from memrl.policy.trie_walk import Level, Walk
from memrl.rollout.in_process import InProcessSampler
from memrl.task.answer_format import integer_format
from memrl.task.automaton import AnswerAutomaton, build_automaton

STOP_TOKEN = 1
FIRST_DIGIT = 3
"""Answers are decimal digits: digit d is the token FIRST_DIGIT + d, so that no tokenizer is needed."""

_FOREVER, _NEVER = 10**9, 1.0 - 1e-12
"""Updates and a probability of the secret that no measurement reaches."""


def build_random_base(size: str, *, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """A frozen decoder with random weights, built in place.

    Args:
        size: a name in model_sizes.SIZES.
        dtype: of its weights.
        device: where it is built.
    """
    shape = check_model_size(size)
    shared: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.d_head,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "eos_token_id": STOP_TOKEN,
        "bos_token_id": None,
        "tie_word_embeddings": shape.qwen3,
    }
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = (
            Qwen3ForCausalLM(Qwen3Config(**shared)) if shape.qwen3 else LlamaForCausalLM(LlamaConfig(**shared))
        )
    model = model.to(dtype=getattr(torch, dtype)).eval()  # pyright: ignore[reportCallIssue]
    return model.requires_grad_(False)


def build_digit_automaton(N: int) -> AnswerAutomaton:
    """The answers 0 .. N-1 as decimal digits, each ended by STOP_TOKEN.

    >>> build_digit_automaton(12).depth
    3
    """
    digits = [[FIRST_DIGIT + int(d) for d in str(guess)] for guess in range(N)]
    return build_automaton(integer_format(N, "single_step"), digits, stop=STOP_TOKEN)


class BarePack:
    """K cells over one base model, updated forever.

    Args:
        model: the base, frozen.
        configs: one per cell; single_step.
        prompt_tokens: length of every cell's prompt.
    """

    def __init__(self, model: PreTrainedModel, configs: Sequence[TrainConfig], prompt_tokens: int = 6) -> None:
        prompt = tuple(2 + i % 11 for i in range(prompt_tokens))
        tokenizer = build_embedded_tokenizer()
        tasks = {
            N: EncodedTask(
                N, "single_step", "plain", "", "", False, prompt, build_digit_automaton(N), STOP_TOKEN, tokenizer
            )
            for N in {c.N for c in configs}
        }
        endless = [chz.replace(c, n_steps=_FOREVER, stop_probability=_NEVER) for c in configs]
        self.configs, self.episodes_per_update = endless, sum(c.episodes_per_update for c in configs)
        self.policy = PackPolicy.build(model, [tasks[c.N] for c in configs], endless)
        self.state = PackState.start(endless, self.policy)

    def update(self) -> Walk:
        """Samples, rewards and updates every cell once."""
        sampler = _LegalSampler(self.configs, self.state.generators, self.policy.forest)
        return update(self.policy, self.state, sampler).walk


class _LegalSampler(InProcessSampler):
    """Draws among the tokens that some answer has."""

    def split(self, level: Level, legal: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        """See InProcessSampler.split."""
        return super().split(level, legal, np.zeros_like(illegal))
