"""Calibrating a base model: by which method, what came of it, and the record that lies beside the weights."""

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memrl.config import Dtype, TrainConfig
from memrl.limits import MOST_KEYS, MOST_LISTED
from memrl.policy.adapter_pack import check_linears, find_linears
from memrl.policy.base_model import (
    EncodedTask,
    encode_task,
    identify_files,
    load_base_model,
    save_base_model,
)
from memrl.policy.calibration import Prior, check_calibrated, measure_prior
from memrl.policy.head import HeadRecipe, fit_head, read_states
from memrl.policy.interference import measure_interference
from memrl.policy.keys import MEASURED, draw_keys, held_out_keys
from memrl.policy.model_folder import calibrated_folder, check_model_folder
from memrl.policy.questions import QUESTION_FIELDS, RECORD, Question, ask, read_questions
from memrl.policy.walk_check import check_walk
from memrl.policy.warmup import BODY_RECIPE, WarmupProgress, WarmupRecipe, attach_lora, merge_lora, warm_up

FULL_LIMIT = 5_000_000
"""Parameters up to which every weight is trained by default; beyond it the head, and the body only where it must."""

Method = Literal["full", "head", "lora"]

_KEYS_FITTED = 16
"""Keys behind which the head alone is fitted to a keyed prompt."""

_VERSION = 2
"""Part of every key: raised when a change of the code changes what a calibration makes."""

Report = Callable[[str, int, int, str], None]
"""Told what is being done, how much of it is done, out of how much, and a word on how it stands."""


@dataclass(frozen=True)
class CalibratedPrompt:
    """What calibration did to one prompt.

    Attributes:
        task: the prompt and its answers.
        prior: how far the policy is from a uniform secret now; behind the worst key measured, where it is keyed.
        keys_measured: keys behind which it was measured; None without keys.
        interference_before: of its places in the model as it was; NaN where an answer has one place.
        interference: of its places now.
    """

    task: EncodedTask
    prior: Prior
    keys_measured: int | None
    interference_before: float
    interference: float


@dataclass(frozen=True)
class Calibration:
    """A calibrated model.

    Attributes:
        model: the model.
        method: how it was done.
        recipe: with which settings.
        later: with which settings further warm-ups followed.
        losses: of each optimizer step, nats.
        prompts: what came of each prompt.
        seconds: how long it took.
    """

    model: PreTrainedModel
    method: Method
    recipe: WarmupRecipe | HeadRecipe
    later: Sequence[WarmupRecipe]
    losses: Sequence[float]
    prompts: Sequence[CalibratedPrompt]
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether every prompt is answered uniformly."""
        return all(prompt.prior.is_calibrated for prompt in self.prompts)


def calibrate_model(
    model: PreTrainedModel,
    tasks: Sequence[EncodedTask],
    recipe: WarmupRecipe,
    *,
    method: Method | None = None,
    head_recipe: HeadRecipe | None = None,
    lora_rank: int = 32,
    untrained: bool = False,
    later: Sequence[WarmupRecipe] = (),
    report: Report = lambda stage, done, total, word: None,
) -> Calibration:
    """Makes a model answer prompts uniformly.

    Args:
        model: the model; it is changed in place.
        tasks: the prompts.
        recipe: of a warm-up of the body.
        method: full (every weight), head (its rows alone), or lora (merged); unset: full for a small model, else head,
            and lora after it where the head alone does not reach every prompt.
        head_recipe: of the head.
        lora_rank: of method=lora.
        untrained: whether nothing was ever trained, so that there is no interference to look at before.
        later: of further warm-ups, where every weight is trained.
        report: told how far it has come.

    Raises:
        ValueError: the model has no layers for adapters, or does not score a tree of answers as it scores them one by
            one.
    """
    start = time.perf_counter()
    check_linears(model, find_linears(model))
    check_walk(model, max(tasks, key=lambda task: len(task.prompt_ids) + task.max_tokens))
    before = [math.nan] * len(tasks)
    if not untrained:
        before = measure_all_interference(model, tasks, "interference before", report)
    chosen = method or ("full" if model.num_parameters() <= FULL_LIMIT else "head")
    used: WarmupRecipe | HeadRecipe = recipe
    losses: list[float] = []
    if chosen == "head":
        used = head_recipe or HeadRecipe()
        losses = _calibrate_head(model, tasks, used, report)
        if method is None and not all(measure_worst_key(model, task)[0].is_calibrated for task in tasks):
            chosen, used = "lora", recipe
    if chosen == "lora":
        adapted = attach_lora(model, lora_rank, recipe.seed)
        losses = warm_up(adapted, tasks, recipe, _watch_steps(tasks, recipe, report))
        model = merge_lora(adapted)
    elif chosen == "full":
        for each in (recipe, *later):
            losses += warm_up(model, tasks, each, _watch_steps(tasks, each, report))
    after = measure_all_interference(model, tasks, "interference after", report)
    prompts = [
        CalibratedPrompt(task, *measure_worst_key(model, task), *values)
        for task, *values in zip(tasks, before, after, strict=True)
    ]
    return Calibration(model, chosen, used, later, losses, prompts, time.perf_counter() - start)


def measure_worst_key(model: PreTrainedModel, task: EncodedTask) -> tuple[Prior, int | None]:
    """Measures a prompt's prior; of a keyed one behind keys that no calibration trains on, of which the worst counts.

    Returns:
        The prior, and behind how many keys it was measured: 8, fewer of prompts of many answers; None without keys.
    """
    if not task.keyed:
        return measure_prior(model, task), None
    keys = held_out_keys(max(1, min(MEASURED, MOST_LISTED // len(task.tree.paths))))
    priors = [measure_prior(model, task.with_key(key)) for key in keys.tolist()]
    return max(priors, key=lambda prior: prior.kl_bits), len(keys)


def _calibrate_head(
    model: PreTrainedModel, tasks: Sequence[EncodedTask], recipe: HeadRecipe, report: Report
) -> list[float]:
    tasks = [each for task in tasks for each in _spread_keys(task)]
    total = sum(int((~task.tree.is_leaf).sum()) for task in tasks)
    read = 0

    def count(nodes: int) -> None:
        nonlocal read
        read += nodes
        report("hidden states", read, total, "")

    states = read_states(model, tasks, count)
    return fit_head(
        model, states, recipe, lambda step, loss: report("head", step, recipe.steps, f"loss {loss:.4f} nats")
    )


def _spread_keys(task: EncodedTask) -> list[EncodedTask]:
    """The task behind some keys, where it is keyed; else the task alone."""
    if not task.keyed:
        return [task]
    return [task.with_key(key) for key in draw_keys(np.random.default_rng(0), _KEYS_FITTED).tolist()]


def measure_all_interference(
    model: PreTrainedModel, tasks: Sequence[EncodedTask], stage: str, report: Report
) -> list[float]:
    """The interference of every prompt's places; see `memrl.policy.interference`."""
    measured: list[float] = []
    for task in tasks:
        measured.append(measure_interference(model, task))
        report(stage, len(measured), len(tasks), "")
    return measured


def _watch_steps(
    tasks: Sequence[EncodedTask], recipe: WarmupRecipe, report: Report
) -> Callable[[WarmupProgress], None]:
    word = ""

    def watch(progress: WarmupProgress) -> None:
        nonlocal word
        if progress.priors is not None:
            pairs = zip(tasks, progress.priors, strict=True)
            task, prior = max(pairs, key=lambda pair: pair[1].max_deviation_bits)
            length = "" if task.secret_length is None else f" secret_length={task.secret_length}"
            word = f"worst: N={task.N}{length}{' keyed' * task.keyed} {task.env_type}, KL {prior.kl_bits:.3f} bits"
        report("warm-up", progress.step, recipe.steps, word)

    return watch


def save_calibration(calibration: Calibration, tokenizer: PreTrainedTokenizerBase, folder: Path, source: str) -> None:
    """Writes the model, its tokenizer and the record as a folder that `model=FOLDER` reads.

    Args:
        calibration: what to write.
        tokenizer: the model's tokenizer.
        folder: where to; it is made.
        source: the address of the model that was calibrated.
    """
    save_base_model(calibration.model, tokenizer, folder)
    record = {
        "model": source,
        "method": calibration.method,
        "recipe": asdict(calibration.recipe),
        "later": [asdict(each) for each in calibration.later],
        "steps_taken": len(calibration.losses),
        "first_losses": list(calibration.losses[:20]),
        "versions": {package: version(package) for package in ("torch", "transformers", "tokenizers", "numpy")},
        "prompts": [_describe_prompt(prompt) for prompt in calibration.prompts],
        "seconds": round(calibration.seconds),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _describe_prompt(prompt: CalibratedPrompt) -> dict[str, object]:
    values = {"interference_before": prompt.interference_before, "interference": prompt.interference}
    return {
        **{name: getattr(prompt.task, name) for name in QUESTION_FIELDS},
        "num_keys": MOST_KEYS if prompt.task.keyed else None,
        "keys_measured": prompt.keys_measured,
        **asdict(prompt.prior),
        # NaN is no JSON.
        **{name: value if value == value else None for name, value in values.items()},
    }


def ensure_calibrated(
    model: str,
    cells: Iterable[TrainConfig],
    *,
    report: Report = lambda stage, done, total, word: None,
    dry_run: bool = False,
) -> str:
    """Calibrates a base model for the prompts of some cells, once: the result is kept in the user's cache.

    Args:
        model: the base model's address.
        cells: the cells that are to train on it; those of other models are left out.
        report: told how far it has come.
        dry_run: only says what the address would be.

    Returns:
        The address of the calibrated model: `model` itself where it is calibrated for all of the prompts, else
        `MODEL@KEY`, with a key that stands for weights, tokenizer, prompts and recipe.

    Raises:
        ValueError: the model can't be read, its tokenizer can't write an answer, or a prompt can't be calibrated.
    """
    mine = [cell for cell in cells if cell.model == model]
    questions = sorted({ask(cell) for cell in mine}, key=repr)
    place = Path(check_model_folder(model))
    if set(questions) <= set(read_questions(place)):
        return model
    dtype = mine[0].dtype
    key = _name_calibration(model, questions, dtype)
    if not dry_run and not calibrated_folder(key).is_dir():
        _calibrate_into(calibrated_folder(key), model, questions, dtype, report)
    return f"{model}@{key}"


def _name_calibration(model: str, questions: Sequence[Question], dtype: Dtype) -> str:
    parts = [_VERSION, asdict(identify_files(model)), questions, dtype, asdict(HeadRecipe()), asdict(BODY_RECIPE)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _calibrate_into(folder: Path, model: str, questions: Sequence[Question], dtype: Dtype, report: Report) -> None:
    draft = _make_draft(folder)
    try:
        base, tokenizer = load_base_model(model, dtype)
        tasks = [encode_task(tokenizer, *question) for question in questions]
        calibration = calibrate_model(base, tasks, BODY_RECIPE, report=report)
        for prompt in calibration.prompts:
            check_calibrated(prompt.prior, prompt.task, model)
        save_calibration(calibration, tokenizer, draft, model)
        # Launches that start together each make one; whoever comes late keeps the other's.
        if not folder.is_dir():
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _make_draft(folder: Path) -> Path:
    """An empty folder beside one that is to be made, so that what can't be written is refused before the work."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        rule = f"the cache of calibrated models must be writable, got {folder.parent} ({error.strerror})"
        raise ValueError(f"{rule}; XDG_CACHE_HOME names another") from None
