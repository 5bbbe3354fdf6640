"""What the command `warmup_train` is told: which model to calibrate, for which prompts, and how."""

import math
from pathlib import Path
from typing import Literal

import chz

from memrl.cell_rules import require
from memrl.cli import read_value
from memrl.config import Dtype, EnvType, PromptFormat
from memrl.fields import field
from memrl.limits import MOST_SECRETS, MOST_SIGNAL_BITS
from memrl.policy.model_folder import check_model_folder

_EVERY_N = "2,4,8,16,32,64,128,256,512,1024,2048,4096,10,100,500,1000"


@chz.chz(typecheck=True)
class WarmupConfig:
    """What to calibrate, for which prompts, and how.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    output: str = field(default="", doc="the folder to write; to be given")
    model: str = field(default="embedded", doc="scratch, embedded, smollm2-135m, a folder, a .gguf file, or a hub name")
    N: str = field(default=_EVERY_N, doc="sizes to calibrate for, by commas; unset, scratch has sequences, too")
    env_type: str = field(default="single_step,multi_step", doc="single_step, multi_step, or both by a comma")
    secret_length: str = field(default="", doc="symbols of sequences, by commas; unset: integers")
    keyed: str = field(
        default="False", doc="whether a key stands before the prompt (k137 and others): False, True, or both by a comma"
    )
    prompt_format: PromptFormat = field(default="plain", doc="plain, or the model's chat template")
    bit_separator: str = field(default="", doc="text between bits, for tokenizers that merge them")
    prompt: str = field(default="", doc="the prompt, as cells set it; unset: the shortest there is")
    method: Literal["full", "head", "lora"] | None = field(
        default=None, doc="full, head (the head's rows of the answers' tokens), or lora (merged); unset: as it fits"
    )
    steps: int | None = field(default=None, doc="the most optimizer steps; unset: the method's own")
    learning_rate: float | None = field(default=None, doc="AdamW's peak; unset: the method's own")
    decorrelate: float | None = field(
        default=None,
        doc="weight, in a warm-up of the body, of how alike an answer's places are: larger, and they interfere less;"
        " below 0 they are made alike; unset: the embedded model's for scratch, else 0",
    )
    lora_rank: int = field(default=32, doc="rank of method=lora")
    seed: int = field(default=0, doc="draws the weights of model=scratch, and the batches")
    dtype: Dtype = field(default="float32", doc="of the weights, in training and as written")
    device: str = field(default="cpu", doc="where to train, as torch names it")

    @chz.validate
    def _check(self) -> None:
        require(min(self.sizes) >= 2, "N", "be at least 2", min(self.sizes))
        require(max(self.sizes) <= MOST_SECRETS, "N", f"be at most {MOST_SECRETS:,}", max(self.sizes))
        require(bool(self.env_types), "env_type", "name at least one", self.env_type)
        rule = "be multi_step where secret_length is set"
        require(self.lengths == [None] or self.env_types == ["multi_step"], "env_type", rule, self.env_type)
        require(bool(self.keys), "keyed", "name at least one", self.keyed)
        for length in self.lengths:
            require(length is None or length >= 1, "secret_length", "be at least 1", length)
            most = int(MOST_SIGNAL_BITS / math.log2(max(self.sizes)))
            require((length or 1) <= most, "secret_length", f"be at most {most} at N={max(self.sizes)}", length)
        require((self.steps is None) or self.steps >= 1, "steps", "be at least 1", self.steps)
        require(
            self.learning_rate is None or self.learning_rate > 0, "learning_rate", "be positive", self.learning_rate
        )
        require((self.learning_rate or 0.0) <= 1.0, "learning_rate", "be at most 1", self.learning_rate)
        require(math.isfinite(self.decorrelate or 0.0), "decorrelate", "be a finite number", self.decorrelate)
        require(self.lora_rank >= 1, "lora_rank", "be at least 1", self.lora_rank)
        require(self.seed >= 0, "seed", "be at least 0", self.seed)
        require(bool(self.output), "output", "name the folder to write", "nothing")
        require(not Path(self.output).expanduser().is_file(), "output", "be a folder", self.output)
        if self.model != "scratch":
            check_model_folder(self.model)

    @property
    def makes_embedded(self) -> bool:
        """Whether the embedded model is made, with all prompts that it is for."""
        return self.model == "scratch" and self.N == _EVERY_N and not self.secret_length

    @property
    def sizes(self) -> list[int]:
        """The numbers of secrets that N lists."""
        return [read_value("N", int, text) for text in self.N.split(",")]

    @property
    def env_types(self) -> list[EnvType]:
        """The names that env_type lists."""
        return [read_value("env_type", EnvType, text) for text in self.env_type.split(",")]

    @property
    def keys(self) -> list[bool]:
        """The values that keyed lists."""
        return [read_value("keyed", bool, text) for text in self.keyed.split(",")]

    @property
    def lengths(self) -> list[int | None]:
        """The lengths of sequences that secret_length lists; None for integers."""
        if not self.secret_length:
            return [None]
        return [read_value("secret_length", int, text) for text in self.secret_length.split(",")]
