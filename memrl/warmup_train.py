"""Calibrates a base model: after it, every prompt asked for is answered uniformly.

The result is a plain folder (safetensors, tokenizer, `warmup.json`) that `model=FOLDER` of every command reads.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import chz

from memrl.cli import BAD_INPUT, parse_arguments, read_value
from memrl.config import MOST_SECRETS, Dtype, EnvType, PromptFormat
from memrl.policy.base_model import EncodedTask, encode_task, load_base_model, save_base_model
from memrl.policy.model_folder import check_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memrl.policy.calibration import Prior
    from memrl.policy.warmup import WarmupProgress, WarmupRecipe

USAGE = """\
Calibrates a base model: after it, every prompt asked for is answered uniformly.

  python -m memrl.warmup_train model=scratch seed=0 output=FOLDER    rebuilds the embedded model from its seed
  python -m memrl.warmup_train model=FOLDER N=64,128 output=OTHER    calibrates any model for other N
"""
RECORD = "warmup.json"
"""The file beside the weights that says what they are calibrated for, and how they were made."""

FULL_LIMIT = 5_000_000
"""Parameters up to which every weight is trained by default; beyond it a LoRA is, and merged."""

Method = Literal["full", "lora"]
Key = tuple[int, EnvType, PromptFormat, str]


@chz.chz(typecheck=True)
class WarmupConfig:
    """What to calibrate, for which prompts, and how.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    output: str = chz.field(default="", doc="the folder to write; to be given")
    model: str = chz.field(default="embedded", doc="scratch, embedded, a folder, or a Hugging Face name")
    N: str = chz.field(
        default="2,4,8,16,32,64,128,256,512,1024,2048,4096,10,100,500,1000", doc="sizes to calibrate for, by commas"
    )
    env_type: str = chz.field(default="single_step,multi_step", doc="single_step, multi_step, or both by a comma")
    prompt_format: PromptFormat = chz.field(default="plain", doc="plain, or the model's chat template")
    bit_separator: str = chz.field(default="", doc="text between bits, for tokenizers that merge them")
    method: Method | None = chz.field(default=None, doc="full, or lora (merged at the end); unset: by size")
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


def calibrate(config: WarmupConfig) -> "list[tuple[EncodedTask, Prior]]":
    """Trains as `config` says, writes the folder, and returns the prior of what was written, prompt by prompt.

    Prompts that the model's own record lists are trained along, so that a model keeps what it was calibrated for.
    """
    from memrl.policy.calibration import measure_prior
    from memrl.policy.warmup import attach_lora, merge_lora, warm_up

    model, tokenizer = _start_model(config)
    keys = _list_prompts(config)
    tasks = [encode_task(tokenizer, *key) for key in keys]
    method = config.method or ("full" if model.num_parameters() <= FULL_LIMIT else "lora")
    recipe = make_recipe(config, method)
    start = time.perf_counter()
    with _ProgressLine(tasks, recipe.steps) as line:
        if method == "lora":
            adapted = attach_lora(model, config.lora_rank, config.seed)
            losses = warm_up(adapted, tasks, recipe, line.show)
            model = merge_lora(adapted)
        else:
            losses = warm_up(model, tasks, recipe, line.show)
    priors = [measure_prior(model, task) for task in tasks]
    output = Path(config.output)
    save_base_model(model, tokenizer, output)
    record = describe_warmup(config, method, recipe, losses, list(zip(keys, priors, strict=True)))
    record["seconds"] = round(time.perf_counter() - start)
    (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return list(zip(tasks, priors, strict=True))


def _start_model(config: WarmupConfig) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    if config.model != "scratch":
        return load_base_model(config.model, config.dtype, config.device)
    import torch

    from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer

    model: Any = build_embedded_model(config.seed)
    return model.to(device=config.device, dtype=getattr(torch, config.dtype)), build_embedded_tokenizer()


def _list_prompts(config: WarmupConfig) -> list[Key]:
    """The prompts asked for, then those that the model is calibrated for already."""
    ending = (config.prompt_format, config.bit_separator)
    asked: list[Key] = [(N, env_type, *ending) for N in config.sizes for env_type in config.env_types]
    known: list[Key] = []
    if config.model != "scratch":
        record = Path(check_model_folder(config.model)) / RECORD
        if record.is_file():
            rows = json.loads(record.read_text("utf-8"))["prompts"]
            known = [(row["N"], row["env_type"], row["prompt_format"], row["bit_separator"]) for row in rows]
    return list(dict.fromkeys([*asked, *known]))


def make_recipe(config: WarmupConfig, method: Method) -> "WarmupRecipe":
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


def describe_warmup(
    config: WarmupConfig,
    method: Method,
    recipe: "WarmupRecipe",
    losses: Sequence[float],
    priors: "Sequence[tuple[Key, Prior]]",
) -> dict[str, Any]:
    """The record that lies beside the weights: what made them, and the prior at every prompt."""
    names = ("N", "env_type", "prompt_format", "bit_separator")
    return {
        "model": config.model,
        "method": method,
        "recipe": asdict(recipe),
        "steps_taken": len(losses),
        "first_losses": list(losses[:20]),
        "versions": {package: version(package) for package in ("torch", "transformers", "tokenizers", "numpy")},
        "prompts": [dict(zip(names, key, strict=True)) | asdict(prior) for key, prior in priors],
    }


class _ProgressLine:
    """One live line: steps done, and the worst prompt so far."""

    def __init__(self, tasks: "Sequence[EncodedTask]", steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._tasks = tasks
        self._progress = Progress(
            TextColumn("warm-up"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = self._progress.add_task("", total=steps)

    def __enter__(self) -> "_ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, progress: "WarmupProgress") -> None:
        if progress.priors is None:
            self._progress.update(self._bar, completed=progress.step)
            return
        pairs = zip(self._tasks, progress.priors, strict=True)
        task, prior = max(pairs, key=lambda pair: pair[1].max_deviation_bits)
        text = (
            f"worst: N={task.N} {task.env_type}, KL {prior.kl_bits:.3f}, deviation {prior.max_deviation_bits:.2f} bits"
        )
        self._progress.update(self._bar, completed=progress.step, description=text)


def print_priors(results: "Sequence[tuple[EncodedTask, Prior]]") -> None:
    """Prints the prior at every prompt as a table, in bits."""
    from rich.console import Console
    from rich.table import Table

    table = Table("N", "env_type", "KL, bits", "largest deviation, bits", "well-formed", "calibrated")
    for task, prior in sorted(results, key=lambda result: (result[0].env_type, result[0].N)):
        figures = (f"{prior.kl_bits:.4f}", f"{prior.max_deviation_bits:.3f}", f"{prior.well_formed_mass:.4f}")
        table.add_row(str(task.N), task.env_type, *figures, "yes" if prior.is_calibrated else "no")
    Console().print(table)


def main() -> int:
    """Calibrates as the command line says; exit code 0, or 1 where a prompt stayed uncalibrated."""
    (config,) = parse_arguments(sys.argv[1:], WarmupConfig, usage=USAGE)
    try:
        results = calibrate(config)
    except ValueError as error:  # what only the model's own files show: a cut-off folder, a tokenizer that merges bits
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print_priors(results)
    calibrated = sum(prior.is_calibrated for _, prior in results)
    print(f"{calibrated} of {len(results)} prompts calibrated; use model={config.output}")
    return 0 if calibrated == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
