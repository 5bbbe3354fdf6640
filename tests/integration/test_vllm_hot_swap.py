"""Hot swaps, waves, order and seeds of a running engine; one engine serves all tests of this file."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray
from ray_cluster import start_ray
from vllm_models import build_model, export_adapter, gap, make_request, wrap_with_adapter

from memrl.rollout.actor_pool import VLLMRollout, start_rollout_actors
from memrl.rollout.vllm_actor import EngineOptions

pytestmark = pytest.mark.vllm

MAX_LORAS = 3
SHORT = [1, 7, 9]
LONG = [4 + i % 50 for i in range(100)]  # three whole blocks of the CPU engine's cache, and a bit


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return build_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def rollout(folder: str) -> Iterator[VLLMRollout]:
    with start_ray(num_cpus=2):
        yield start_rollout_actors(EngineOptions(folder, max_loras=MAX_LORAS, max_lora_rank=8))


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["prompt-below-a-block", "prompt-of-three-blocks"])
def test_every_update_is_used_from_its_first_episode(rollout: VLLMRollout, folder: str, prompt: list[int]) -> None:
    for version in range(4):
        learner = wrap_with_adapter(folder, rank=4, seed=version)
        (episodes,) = rollout.sample([make_request(export_adapter(learner), prompt, version=version)])
        assert episodes.adapter_version == version
        assert gap(learner, prompt, episodes) <= 1e-3


def test_a_version_that_changed_under_its_old_number_is_used(rollout: VLLMRollout, folder: str) -> None:
    """A run that starts again from a checkpoint counts its versions from there."""
    for seed in (20, 21):
        learner = wrap_with_adapter(folder, rank=4, seed=seed)
        (episodes,) = rollout.sample([make_request(export_adapter(learner), LONG, cell_id="again", version=7)])
        assert gap(learner, LONG, episodes) <= 1e-3


def test_episodes_of_one_prompt_share_its_cache(rollout: VLLMRollout, folder: str) -> None:
    """Without prefix caching the tests of hot swaps would show nothing about stale caches."""
    request = make_request(export_adapter(wrap_with_adapter(folder, rank=4, seed=30)), LONG, cell_id="cached")
    before = rollout.stats()["actors"][0]["num_cached_tokens"]
    rollout.sample([request, replace(request, seed=1)])
    assert rollout.stats()["actors"][0]["num_cached_tokens"] - before >= 96


def test_more_cells_than_max_loras_are_served_in_waves_and_in_order(rollout: VLLMRollout, folder: str) -> None:
    ranks = [1, 2, 3, 5, 8, 8, 6]
    learners = [wrap_with_adapter(folder, rank=rank, seed=40 + i) for i, rank in enumerate(ranks)]
    requests = [
        make_request(export_adapter(learner), SHORT, cell_id=f"cell-{i}", version=i, episodes=2 + i)
        for i, learner in enumerate(learners)
    ]
    before = rollout.stats()["actors"][0]
    sampled = rollout.sample(requests)
    after = rollout.stats()["actors"][0]

    assert after["num_waves"] - before["num_waves"] == 3
    assert after["num_swaps"] - before["num_swaps"] == len(ranks)
    for i, (learner, episodes) in enumerate(zip(learners, sampled, strict=True)):
        assert (episodes.cell_id, episodes.adapter_version) == (f"cell-{i}", i)
        assert episodes.tokens.shape == (2 + i, 6)
        assert gap(learner, SHORT, episodes) <= 1e-3


def test_a_cells_episodes_do_not_depend_on_its_neighbors(rollout: VLLMRollout, folder: str) -> None:
    adapters = [export_adapter(wrap_with_adapter(folder, rank=4, seed=60 + i)) for i in range(4)]
    requests = [make_request(adapter, SHORT, cell_id=f"cell-{i}") for i, adapter in enumerate(adapters)]
    together = rollout.sample(requests)
    (alone,) = rollout.sample(requests[-1:])
    np.testing.assert_array_equal(together[-1].tokens, alone.tokens)

    same_policy = [replace(requests[0], cell_id="twin"), replace(requests[0], seed=1)]
    for episodes in rollout.sample(same_policy):
        assert not np.array_equal(episodes.tokens, together[0].tokens), "other cells and seeds draw other episodes"


def test_more_prompt_tokens_than_one_step_takes(rollout: VLLMRollout, folder: str) -> None:
    """No prompt is cut between steps of the engine: on a CPU it can't sample by a seed from one that was."""
    learner = wrap_with_adapter(folder, rank=4, seed=65)
    prompt = LONG[:30]
    (episodes,) = rollout.sample([make_request(export_adapter(learner), prompt, cell_id="many", episodes=200)])
    assert gap(learner, prompt, episodes) <= 1e-3


def test_sampled_tokens_follow_the_logprobs(rollout: VLLMRollout, folder: str) -> None:
    """The mean of -log P over sampled first tokens is the entropy of the first token."""
    learner = wrap_with_adapter(folder, rank=4, seed=70)
    request = make_request(export_adapter(learner), SHORT, episodes=2000)
    (episodes,) = rollout.sample([replace(request, max_tokens=1)])
    first = -episodes.rollout_logprobs[:, 0]
    counts = np.bincount(episodes.tokens[:, 0], minlength=64)
    exact = np.zeros(64)
    exact[episodes.tokens[:, 0]] = np.exp(episodes.rollout_logprobs[:, 0])
    assert abs(counts[exact > 0].sum() / 2000 - 1) < 1e-12
    assert exact.sum() > 0.95
    entropy = -(exact[exact > 0] * np.log(exact[exact > 0])).sum()
    assert abs(first.mean() - entropy) < 5 * first.std() / 2000**0.5 + 0.05 * (1 - exact.sum())
    deviation = (counts - 2000 * exact) / np.sqrt(2000 * exact * (1 - exact) + 1e-9)
    assert np.abs(deviation[exact > 0.005]).max() < 5


def test_ranks_beyond_the_engines_are_refused(rollout: VLLMRollout, folder: str) -> None:
    adapter = export_adapter(wrap_with_adapter(folder, rank=9, seed=0))
    with pytest.raises(ValueError, match="lora_rank must be at most 8 here, got 9"):
        rollout.sample([make_request(adapter, SHORT)])


def test_all_trials_find_the_one_engine(rollout: VLLMRollout, folder: str) -> None:
    """A trial is another process that connects by name, samples, and lets go; the engine stays."""

    @ray.remote(num_cpus=0)
    def sample_in_a_trial(request: object) -> np.ndarray:
        backend = VLLMRollout.connect()
        (episodes,) = backend.sample([request])  # pyright: ignore[reportArgumentType]
        return episodes.tokens

    adapter = export_adapter(wrap_with_adapter(folder, rank=2, seed=80))
    trials = [sample_in_a_trial.remote(make_request(adapter, SHORT, cell_id=f"trial-{i}")) for i in range(3)]
    assert [tokens.shape for tokens in ray.get(trials)] == [(16, 6)] * 3
    stats = rollout.stats()
    assert stats["engines_started"] == len(stats["engines"]) == len(rollout.actors) == 1


def test_an_engine_that_dies_is_started_again_and_its_work_repeated(rollout: VLLMRollout, folder: str) -> None:
    learner = wrap_with_adapter(folder, rank=4, seed=90)
    request = make_request(export_adapter(learner), SHORT, cell_id="survivor")
    (before,) = rollout.sample([request])
    ray.kill(rollout.actors[0], no_restart=False)
    (after,) = rollout.sample([request])
    np.testing.assert_array_equal(before.tokens, after.tokens)
    assert rollout.stats()["engines_started"] == 2


def test_an_engine_that_hangs_is_replaced_and_its_work_repeated_once(rollout: VLLMRollout, folder: str) -> None:
    learner = wrap_with_adapter(folder, rank=4, seed=91)
    request = make_request(export_adapter(learner), SHORT, cell_id="patient")
    (before,) = rollout.sample([request])
    started = rollout.stats()["engines_started"]
    # Two trials wait for it, and both see that it does not answer: it is ended once.
    trials = [VLLMRollout.connect(least_wait_s=1.0) for _ in range(2)]
    hanging = find_engines()
    for process in hanging:
        process.suspend()
    with ThreadPoolExecutor() as pool:
        for (after,) in pool.map(lambda trial: trial.sample([request]), trials):
            np.testing.assert_array_equal(before.tokens, after.tokens)
    stats = rollout.stats()
    assert stats["engines_started"] == started + 1
    assert stats["actors"][0]["num_episodes"] == len(trials) * request.num_episodes
    assert not [process for process in hanging if process.is_running()]


def find_engines() -> list[psutil.Process]:
    """The engines' processes."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "VLLMRolloutActor" in " ".join(process.cmdline())]
