"""Calibrates a base model: after it, every prompt asked for is answered uniformly.

The result is a plain folder (safetensors, tokenizer, `warmup.json`) that `model=FOLDER` of every command reads.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import chz

from memrl.cli import BAD_INPUT, parse_arguments, read_value
from memrl.config import MOST_SECRETS, Dtype, EnvType, PromptFormat
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.model_folder import check_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memrl.policy.calibrator import CalibratedPrompt, Calibration, Question
    from memrl.policy.head import HeadRecipe
    from memrl.policy.warmup import WarmupRecipe

USAGE = """\
Calibrates a base model: after it, every prompt asked for is answered uniformly.

  python -m memrl.warmup_train model=scratch seed=0 output=FOLDER    rebuilds the embedded model from its seed
  python -m memrl.warmup_train model=FOLDER N=64,128 output=OTHER    calibrates any model for other N

A large model keeps its body: its head alone is fitted, and the body only where that does not do.
"""
_PLAIN_SECONDS = 10.0
"""Without a terminal, progress is printed this often."""


@chz.chz(typecheck=True)
class WarmupConfig:
    """What to calibrate, for which prompts, and how.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    output: str = chz.field(default="", doc="the folder to write; to be given")
    model: str = chz.field(
        default="embedded", doc="scratch, embedded, smollm2-135m, a folder, a .gguf file, or a hub name"
    )
    N: str = chz.field(
        default="2,4,8,16,32,64,128,256,512,1024,2048,4096,10,100,500,1000", doc="sizes to calibrate for, by commas"
    )
    env_type: str = chz.field(default="single_step,multi_step", doc="single_step, multi_step, or both by a comma")
    prompt_format: PromptFormat = chz.field(default="plain", doc="plain, or the model's chat template")
    bit_separator: str = chz.field(default="", doc="text between bits, for tokenizers that merge them")
    prompt: str = chz.field(default="", doc="the prompt, as cells set it; unset: the shortest there is")
    method: Literal["full", "head", "lora"] | None = chz.field(
        default=None, doc="full, head (the head's rows of the answers' tokens), or lora (merged); unset: as it fits"
    )
    steps: int | None = chz.field(default=None, doc="the most optimizer steps; unset: the method's own")
    learning_rate: float | None = chz.field(default=None, doc="AdamW's peak; unset: the method's own")
    prompts_per_step: int = chz.field(default=16, doc="prompts of a batch")
    nodes_per_prompt: int = chz.field(default=96, doc="about how many nodes of a prompt's tree a batch holds")
    lora_rank: int = chz.field(default=32, doc="rank of method=lora")
    seed: int = chz.field(default=0, doc="draws the weights of model=scratch, and the batches")
    dtype: Dtype = chz.field(default="float32", doc="of the weights, in training and as written")
    device: str = chz.field(default="cpu", doc="where to train, as torch names it")

    @chz.validate
    def _check(self) -> None:
        _require(min(self.sizes) >= 2, "N", "be at least 2", min(self.sizes))
        _require(max(self.sizes) <= MOST_SECRETS, "N", f"be at most {MOST_SECRETS:,}", max(self.sizes))
        _require(bool(self.env_types), "env_type", "name at least one", self.env_type)
        _require((self.steps is None) or self.steps >= 1, "steps", "be at least 1", self.steps)
        _require(
            self.learning_rate is None or self.learning_rate > 0, "learning_rate", "be positive", self.learning_rate
        )
        _require(self.prompts_per_step >= 1, "prompts_per_step", "be at least 1", self.prompts_per_step)
        _require(self.nodes_per_prompt >= 1, "nodes_per_prompt", "be at least 1", self.nodes_per_prompt)
        _require(self.lora_rank >= 1, "lora_rank", "be at least 1", self.lora_rank)
        _require(self.seed >= 0, "seed", "be at least 0", self.seed)
        _require(bool(self.output), "output", "name the folder to write", "nothing")
        _require(not Path(self.output).is_file(), "output", "be a folder", self.output)
        if self.model != "scratch":
            check_model_folder(self.model)

    @property
    def sizes(self) -> list[int]:
        """The numbers of secrets that N lists."""
        return [read_value("N", int, text) for text in self.N.split(",")]

    @property
    def env_types(self) -> list[EnvType]:
        """The names that env_type lists."""
        return [read_value("env_type", EnvType, text) for text in self.env_type.split(",")]


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value}")


def calibrate(config: WarmupConfig) -> "Calibration":
    """Calibrates as `config` says, and writes the folder.

    Prompts that the model's own record lists are calibrated along, so that a model keeps what it was calibrated for.

    Raises:
        ValueError: the model can't be read, has no layers for adapters, or its tokenizer can't write the answers.
    """
    from memrl.policy.adapter_pack import find_linears
    from memrl.policy.calibrator import calibrate_model, save_calibration

    output = Path(config.output)
    _prepare_folder(output)
    model, tokenizer = _start_model(config)
    if not find_linears(model):
        raise ValueError(f"model must have linear layers (torch.nn.Linear) beside its head, got {type(model).__name__}")
    tasks = [encode_task(tokenizer, *question) for question in _list_prompts(config)]
    with ProgressLine() as line:
        calibration = calibrate_model(
            model,
            tasks,
            make_recipe(config),
            method=config.method,
            head_recipe=make_head_recipe(config),
            lora_rank=config.lora_rank,
            report=line.show,
        )
    save_calibration(calibration, tokenizer, output, config.model)
    return calibration


def _prepare_folder(folder: Path) -> None:
    """Makes the folder, so that what can't be written is refused before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output must be a folder that can be written, got {folder} ({error.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"output must be a folder that can be written, got {folder}")


def _start_model(config: WarmupConfig) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    if config.model != "scratch":
        return load_base_model(config.model, config.dtype, config.device)
    import torch

    from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer

    model: Any = build_embedded_model(config.seed)
    return model.to(device=config.device, dtype=getattr(torch, config.dtype)), build_embedded_tokenizer()


def _list_prompts(config: WarmupConfig) -> "list[Question]":
    """The prompts asked for, then those that the model is calibrated for already."""
    from memrl.policy.calibrator import read_questions

    ending = (config.prompt_format, config.bit_separator, config.prompt)
    asked: list[Question] = [(N, env_type, *ending) for N in config.sizes for env_type in config.env_types]
    known = [] if config.model == "scratch" else read_questions(Path(check_model_folder(config.model)))
    return list(dict.fromkeys([*asked, *known]))


def make_recipe(config: WarmupConfig) -> "WarmupRecipe":
    """The recipe in force: the embedded model's own for model=scratch, else short runs that stop at the targets."""
    from memrl.policy.warmup import WarmupRecipe

    scratch = config.model == "scratch"
    steps, learning_rate = (5000, 2e-3) if scratch else (2000, 1e-3)
    return WarmupRecipe(
        steps=config.steps or steps,
        learning_rate=config.learning_rate or learning_rate,
        seed=config.seed,
        prompts_per_step=config.prompts_per_step,
        nodes_per_prompt=config.nodes_per_prompt,
        probe_weight=0.1 if scratch else 0.0,
        measure_every=200 if scratch else 100,
        stop_early=not scratch,
    )


def make_head_recipe(config: WarmupConfig) -> "HeadRecipe":
    """The recipe of the head: its own, with steps and learning rate as given for method=head."""
    from memrl.policy.head import HeadRecipe

    given = {"steps": config.steps, "learning_rate": config.learning_rate} if config.method == "head" else {}
    return HeadRecipe(**{name: value for name, value in given.items() if value is not None})


class ProgressLine:
    """One live line: what is being done, and how far it has come; without a terminal a line every ten seconds."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[word]}"),
        )
        self._bar = self._progress.add_task("", total=None, word="")
        self._last_print = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int, word: str = "") -> None:
        """Shows how far a stage has come."""
        self._progress.update(self._bar, description=stage, completed=done, total=total, word=word)
        now = time.monotonic()
        if not self._progress.console.is_terminal and (now - self._last_print >= _PLAIN_SECONDS):
            print(f"{stage}: {done:,} of {total:,} {word}".rstrip(), flush=True)
            self._last_print = now


def print_prompts(prompts: "Sequence[CalibratedPrompt]") -> None:
    """Prints what came of every prompt: KL and largest deviation from uniform in bits, and interference."""
    from rich.console import Console
    from rich.table import Table

    table = Table("N", "env_type", "KL, bits", "largest", "well-formed", "interference", "calibrated")
    for prompt in sorted(prompts, key=lambda prompt: (prompt.task.env_type, prompt.task.N)):
        task, prior = prompt.task, prompt.prior
        figures = (f"{prior.kl_bits:.4f}", f"{prior.max_deviation_bits:.3f}", f"{prior.well_formed_mass:.4f}")
        shared = f"{prompt.interference_before:.2f} → {prompt.interference:.2f}"
        verdict = "yes" if prior.is_calibrated else "no"
        table.add_row(str(task.N), task.env_type, *figures, "·" if math.isnan(prompt.interference) else shared, verdict)
    Console().print(table)


def main() -> int:
    """Calibrates as the command line says; exit code 0, or 1 where a prompt stayed uncalibrated."""
    (config,) = parse_arguments(sys.argv[1:], WarmupConfig, usage=USAGE)
    try:
        calibration = calibrate(config)
    except ValueError as error:  # what only the model's own files show: a cut-off folder, a tokenizer that merges bits
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    prompts = calibration.prompts
    print_prompts(prompts)
    calibrated = sum(prompt.prior.is_calibrated for prompt in prompts)
    print(
        f"{calibrated} of {len(prompts)} prompts calibrated; use model={config.output}"
        f" (method={calibration.method}, {calibration.seconds:.0f} s)"
    )
    return 0 if calibration.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
