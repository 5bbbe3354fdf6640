"""The base model: where it lies, how it is read, and the prompt and answers of a task in its tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memrl.config import Dtype, EnvType, PromptFormat
from memrl.policy.model_folder import RULE, check_model_folder
from memrl.task.prompt import answer_steps, prompt_text
from memrl.task.trie import AnswerTrie, build_trie

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
        trie: the token trie of the N answers.
        stop_token_id: the token that ends a single_step answer; None for multi_step, whose answers end by their length.
    """

    N: int
    env_type: EnvType
    prompt_format: PromptFormat
    bit_separator: str
    prompt_ids: tuple[int, ...]
    trie: AnswerTrie
    stop_token_id: int | None

    @property
    def num_env_steps(self) -> int:
        """env_steps of a whole answer: 1, or the number of bits."""
        return int(self.trie.steps_done.max())

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer, stop token included."""
        return self.trie.depth


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

    Prompt and answers are tokenised apart and their ids concatenated, so that a prompt's tokens never depend on the
    answer. A single_step answer ends with the tokenizer's end-of-sequence token; a multi_step answer is k env_steps.

    Raises:
        ValueError: the tokenizer merges bits, has no end-of-sequence token, or no chat template for prompt_format=chat.
    """
    prompt_ids = _encode_prompt(tokenizer, prompt_text(N, env_type), prompt_format)
    texts = [answer_steps(guess, N, env_type, bit_separator) for guess in range(N)]
    if env_type == "single_step":
        stop: Any = tokenizer.eos_token_id
        if stop is None:
            raise ValueError(
                "model must have an end-of-sequence token for env_type=single_step, got a tokenizer without"
            )
        answers = [[[*ids, stop]] for ids in _encode_batch(tokenizer, [steps[0] for steps in texts])]
    else:
        stop = None
        answers = _encode_bits(tokenizer, texts, bit_separator)
    return EncodedTask(N, env_type, prompt_format, bit_separator, prompt_ids, build_trie(answers), stop)


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


def _encode_bits(
    tokenizer: "PreTrainedTokenizerBase", texts: list[list[str]], bit_separator: str
) -> list[Sequence[Sequence[int]]]:
    @cache
    def encode_span(span: str) -> list[int]:
        return _encode_batch(tokenizer, [span])[0]

    answers: list[Sequence[Sequence[int]]] = [[encode_span(span) for span in steps] for steps in texts]
    whole = _encode_batch(tokenizer, ["".join(steps) for steps in texts])
    for steps, spans, ids in zip(texts, answers, whole, strict=True):
        if [token for span in spans for token in span] != ids:
            raise ValueError(
                f"bit_separator must keep the tokenizer from merging bits, got {bit_separator!r},"
                f" under which {''.join(steps)!r} is not {len(steps)} spans of tokens of its own"
            )
    return answers
