"""Calibrates a model as the command `warmup_train` says, writes its folder, and prints what came of every prompt."""

import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memrl.config import TrainConfig
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.calibrator import (
    CalibratedPrompt,
    Calibration,
    calibrate_model,
    ensure_calibrated,
    save_calibration,
)
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer, list_embedded_questions
from memrl.policy.head import HeadRecipe
from memrl.policy.model_folder import check_model_folder
from memrl.policy.questions import Question, read_questions
from memrl.policy.warmup import BODY_RECIPE, EMBEDDED_STAGES, WarmupRecipe
from memrl.warmup_config import WarmupConfig

_PLAIN_SECONDS = 10.0
"""Without a terminal, progress is printed this often."""


def calibrate(config: WarmupConfig) -> Calibration:
    """Calibrates as `config` says, and writes the folder.

    Prompts that the model's own record lists are calibrated along, so that a model keeps what it was calibrated for.

    Raises:
        ValueError: the folder can't be written, the device is not there, the model can't be read or has no layers for
            adapters, or its tokenizer can't write the answers.
    """
    output = Path(config.output).expanduser()
    _prepare_folder(output)
    _check_device(config.device)
    model, tokenizer = _start_model(config)
    tasks = [encode_task(tokenizer, *question) for question in _list_prompts(config)]
    with ProgressLine() as line:
        calibration = calibrate_model(
            model,
            tasks,
            make_recipe(config),
            method=config.method,
            head_recipe=make_head_recipe(config),
            lora_rank=config.lora_rank,
            untrained=config.model == "scratch",
            later=[replace(each, seed=config.seed) for each in EMBEDDED_STAGES[1:]] if config.makes_embedded else [],
            report=line.show,
        )
    save_calibration(calibration, tokenizer, output, config.model)
    return calibration


def bring_calibrated(cells: Collection[TrainConfig], *, dry_run: bool) -> dict[str, str]:
    """The address of a calibrated copy of each model of some cells, which is made where there is none yet.

    Raises:
        ValueError: a model can't be read, or not be calibrated.
    """
    addresses = {}
    for model in sorted({cell.model for cell in cells}):
        with ProgressLine() as line:
            addresses[model] = ensure_calibrated(model, cells, report=line.show, dry_run=dry_run)
    return addresses


def _prepare_folder(folder: Path) -> None:
    """Makes the folder, so that what can't be written is refused before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output must be a folder that can be written, got {folder} ({error.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"output must be a folder that can be written, got {folder}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device must be one that torch has here, got {device} ({reason})") from None


def _start_model(config: WarmupConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if config.model != "scratch":
        return load_base_model(config.model, config.dtype, config.device)
    torch.set_num_threads(1)  # so small a model gains nothing by more, and sums of one order repeat to the bit
    model: Any = build_embedded_model(config.seed)
    return model.to(device=config.device, dtype=getattr(torch, config.dtype)), build_embedded_tokenizer()


def _list_prompts(config: WarmupConfig) -> list[Question]:
    """The prompts asked for, and those that the model is calibrated for already, or is made for."""
    ending = (config.prompt_format, config.bit_separator, config.prompt)
    asked: list[Question] = [
        (N, env_type, *ending, length, keyed)
        for keyed in config.keys
        for N in config.sizes
        for length in config.lengths
        for env_type in config.env_types
    ]
    if config.model == "scratch":
        return list(dict.fromkeys([*(list_embedded_questions() if config.makes_embedded else []), *asked]))
    return list(dict.fromkeys([*asked, *read_questions(Path(check_model_folder(config.model)))]))


def make_recipe(config: WarmupConfig) -> WarmupRecipe:
    """The recipe in force: the embedded model's own for model=scratch, else short runs that stop at the targets."""
    own = EMBEDDED_STAGES[0] if config.model == "scratch" else BODY_RECIPE
    given = {name: getattr(config, name) for name in ("steps", "learning_rate", "decorrelate")}
    return replace(own, seed=config.seed, **{name: value for name, value in given.items() if value is not None})


def make_head_recipe(config: WarmupConfig) -> HeadRecipe:
    """The recipe of the head: its own, with steps and learning rate as given for method=head."""
    given = {"steps": config.steps, "learning_rate": config.learning_rate} if config.method == "head" else {}
    return HeadRecipe(**{name: value for name, value in given.items() if value is not None})


class ProgressLine:
    """One live line: what is being done, and how far it has come; without a terminal a line every ten seconds."""

    def __init__(self) -> None:
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


def print_prompts(prompts: Sequence[CalibratedPrompt]) -> None:
    """Prints what came of every prompt: KL and largest deviation from uniform in bits, and interference."""
    table = Table("N", "env_type", "KL, bits", "largest", "well-formed", "interference", "calibrated")
    for prompt in sorted(prompts, key=lambda prompt: (prompt.task.env_type, prompt.task.N)):
        task, prior = prompt.task, prompt.prior
        figures = (f"{prior.kl_bits:.4f}", f"{prior.max_deviation_bits:.3f}", f"{prior.well_formed_mass:.4f}")
        known = [each for each in (prompt.interference_before, prompt.interference) if not math.isnan(each)]
        shared = " → ".join(f"{each:.2f}" for each in known) or "·"
        verdict = "yes" if prior.is_calibrated else "no"
        kind = task.env_type if task.secret_length is None else f"{task.secret_length} symbols"
        kind += ", keyed" * task.keyed
        table.add_row(str(task.N), kind, *figures, shared, verdict)
    Console().print(table)
