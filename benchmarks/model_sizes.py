"""Shapes of the random-weight base models, by name; nothing heavy is imported."""

from dataclasses import dataclass

from memrl.suggest import did_you_mean


@dataclass(frozen=True)
class ModelSize:
    """The shape of a decoder: a Llama, or, where `qwen3` says so, a Qwen3 with tied embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    d_head: int
    vocabulary: int
    qwen3: bool = False


SIZES = {
    "0.2m": ModelSize(96, 256, 2, 3, 3, 32, 48),
    "1m": ModelSize(160, 448, 3, 5, 5, 32, 48),
    "10m": ModelSize(384, 1024, 6, 6, 6, 64, 48),
    "30m": ModelSize(512, 1408, 9, 8, 8, 64, 48),
    "100m": ModelSize(768, 2048, 14, 12, 12, 64, 48),
    "qwen3-0.6b": ModelSize(1024, 3072, 28, 16, 8, 128, 151936, qwen3=True),
}
"""By the weights of the linear layers in millions (0.2m is the embedded model's shape), and one model of real size."""


def check_model_size(name: str) -> ModelSize:
    """The shape of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SIZES:
        raise ValueError(f"model must be one of {', '.join(SIZES)}, got {name!r}{did_you_mean(name, SIZES)}")
    return SIZES[name]
