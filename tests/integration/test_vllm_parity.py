"""The engine's log-probabilities are the learner's, in float32, on five architectures and three ranks each."""

from collections.abc import Iterator

import numpy as np
import pytest
import transformers
from ray_cluster import start_ray
from vllm_models import ARCHITECTURES, STOP, build_model, export_adapter, gap, make_request, score, wrap_with_adapter

from memrl.rollout.actor_pool import start_rollout_actors
from memrl.rollout.vllm_actor import EngineOptions

pytestmark = pytest.mark.vllm

RANKS = (1, 5, 12)
PROMPTS = ([1, 7, 9], list(range(4, 44)), [1, 30, 31, 32, 33])


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with start_ray(num_cpus=2):
        yield


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_engine_logprobs_equal_the_learners(architecture: str, tmp_path) -> None:
    folder = build_model(architecture, tmp_path / architecture)
    learners = [wrap_with_adapter(folder, rank, seed=rank) for rank in RANKS]
    adapters = [export_adapter(learner) for learner in learners]
    requests = [
        make_request(adapter, prompt, cell_id=f"rank-{rank}", seed=rank)
        for rank, adapter, prompt in zip(RANKS, adapters, PROMPTS, strict=True)
    ]
    rollout = start_rollout_actors(EngineOptions(folder, max_loras=2, max_lora_rank=max(RANKS)), pool=architecture)
    sampled = rollout.sample(requests)
    rollout.shut_down()

    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for learner, prompt, episodes in zip(learners, PROMPTS, sampled, strict=True):
        assert gap(learner, prompt, episodes) <= 1e-3
        moved = np.abs(score(base, prompt, episodes.tokens) - episodes.rollout_logprobs).max()
        assert moved > 0.1, "the adapter must matter, or agreement with it shows nothing"
        lengths = (episodes.tokens >= 0).sum(1)
        for tokens, length in zip(episodes.tokens, lengths, strict=True):
            assert STOP not in tokens[: length - 1]
            assert length == 6 or tokens[length - 1] == STOP


def test_a_model_that_vllm_cannot_adapt_is_refused_in_one_line(tmp_path) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=64, n_layer=1, n_head=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model must be one that vLLM can serve, got '.*' \(.*LoRA.*\)$"):
        start_rollout_actors(EngineOptions(str(tmp_path)), pool="gpt2")
