"""The base model: where it lies, how it is read, and the prompt and answers of a task in its tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memrl.config import Dtype, EnvType, PromptFormat
from memrl.policy.model_folder import RULE, check_model_folder
from memrl.task.answer_format import AnswerFormat, integer_format
from memrl.task.answer_tree import AnswerTree, expand_automaton
from memrl.task.automaton import AnswerAutomaton, build_automaton
from memrl.task.prompt import prompt_text

_MOST_ANSWERS_CHECKED = 4096
"""Up to so many, each answer's tokens are compared with those of its symbols."""

_RANDOM_ANSWERS_CHECKED = 64

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class EncodedTask:
    """One prompt and all its answers, in the tokens of one tokenizer.

    Attributes:
        N: number of answers.
        env_type: single_step, or multi_step.
        prompt_format: plain, or chat.
        bit_separator: text between bits.
        prompt_ids: token ids of the prompt.
        automaton: which tokens may follow in an answer.
        stop_token_id: the token that ends a single_step answer; None for multi_step, whose answers end by their length.
    """

    N: int
    env_type: EnvType
    prompt_format: PromptFormat
    bit_separator: str
    prompt_ids: tuple[int, ...]
    automaton: AnswerAutomaton
    stop_token_id: int | None

    @property
    def num_env_steps(self) -> int:
        """env_steps of a whole answer: 1, or the number of bits."""
        return self.answer_format.num_env_steps

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer, stop token included."""
        return self.automaton.depth

    @property
    def answer_format(self) -> AnswerFormat:
        """How a secret is answered."""
        return self.automaton.answer_format

    @cached_property
    def tree(self) -> AnswerTree:
        """All answers, listed."""
        return expand_automaton(self.automaton)


def load_base_model(
    model: str, dtype: Dtype = "float32", device: str = "cpu"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a base model and its tokenizer, without remote code.

    Args:
        model: embedded, a folder, or a Hugging Face name.
        dtype: of the weights.
        device: where the weights go, as torch names it.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the model or its tokenizer can't be read.
    """
    address = check_model_folder(model)
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _load_checked_tokenizer(model, address)
    try:
        with _hide_progress_bars():
            network: Any = AutoModelForCausalLM.from_pretrained(
                address, dtype=getattr(torch, dtype), trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(model, error) from error
    return network.to(device).eval(), tokenizer


def save_base_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a model and its tokenizer as a folder that `load_base_model` reads: safetensors and JSON."""
    with _hide_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # they are written for the owner alone, and others can't install a package of such files


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of `model` alone.

    Raises:
        ValueError: the tokenizer can't be read.
    """
    return _load_checked_tokenizer(model, check_model_folder(model))


def _load_checked_tokenizer(model: str, address: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(address, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(model, error) from error


@contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Keeps transformers' bars of loaded and written tensors from breaking the live line of a command."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _unreadable(model: str, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(f"{RULE}, got {model!r} ({reason})")


@lru_cache(maxsize=256)
def encode_task(
    tokenizer: "PreTrainedTokenizerBase",
    N: int,
    env_type: EnvType,
    prompt_format: PromptFormat = "plain",
    bit_separator: str = "",
) -> EncodedTask:
    """Encodes the prompt and all N answers of a task; the same arguments give the same object.

    Prompt and answers are tokenized apart and their ids concatenated, so that a prompt's tokens never depend on the
    answer. A single_step answer ends with the tokenizer's end-of-sequence token; a multi_step answer is k env_steps.

    Raises:
        ValueError: the tokenizer merges bits, has no end-of-sequence token, or no chat template for prompt_format=chat.
    """
    prompt_ids = _encode_prompt(tokenizer, prompt_text(N, env_type), prompt_format)
    answer_format, stop = integer_format(N, env_type, bit_separator), None
    if answer_format.ends_with_stop:
        end: Any = tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "model must have an end-of-sequence token for env_type=single_step, got a tokenizer without"
            )
        stop = int(end)
    automaton = build_automaton(answer_format, *_encode_symbols(tokenizer, answer_format), stop)
    return EncodedTask(N, env_type, prompt_format, bit_separator, prompt_ids, automaton, stop)


def _encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, prompt_format: PromptFormat) -> tuple[int, ...]:
    if prompt_format == "plain":
        return tuple(_encode_batch(tokenizer, [text])[0])
    if not tokenizer.chat_template:
        raise ValueError("prompt_format must be plain for a tokenizer without a chat template, got chat")
    # Models that think before they answer are told not to: the answer follows the prompt at once.
    rendered: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        enable_thinking=False,
    )
    return tuple(rendered)


def _encode_batch(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return encoded


def _encode_symbols(
    tokenizer: "PreTrainedTokenizerBase", answer_format: AnswerFormat
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each digit as the first symbol of an answer, and as a later one, where there is one."""
    texts = [answer_format.symbol_text(digit) for digit in range(answer_format.radix)]
    first = _encode_batch(tokenizer, texts)
    if answer_format.num_env_steps == 1:
        return first, []
    later = _encode_batch(tokenizer, [answer_format.separator + text for text in texts])
    answers = _sample_answers(answer_format)
    written = [answer_format.spans(digits) for digits in answers]
    for digits, spans, whole in zip(
        answers.tolist(), written, _encode_batch(tokenizer, list(map("".join, written))), strict=True
    ):
        if whole != [token for step, digit in enumerate(digits) for token in (later if step else first)[digit]]:
            raise ValueError(
                f"bit_separator must keep the tokenizer from merging bits, got {answer_format.separator!r},"
                f" under which {''.join(spans)!r} is not {len(spans)} spans of tokens of its own"
            )
    return first, later


def _sample_answers(answer_format: AnswerFormat) -> np.ndarray:
    """Digits of all answers, or of some random ones where there are very many: int64 (answers, env_steps)."""
    if answer_format.num_answers <= _MOST_ANSWERS_CHECKED:
        return answer_format.digits(np.arange(answer_format.num_answers))
    shape = (_RANDOM_ANSWERS_CHECKED, answer_format.num_env_steps)
    return np.random.default_rng(0).integers(answer_format.radix, size=shape)
