"""The base model: how it is read, and the prompt and answers of a task in its tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Int
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from memrl.config import Dtype, EnvType, PromptFormat, TrainConfig
from memrl.model_files import hash_tokenizer, hash_weights
from memrl.policy.gguf import dequantize, dequantized_folder
from memrl.policy.model_folder import RULE, SMOLLM2, SMOLLM2_HUB_NAME, check_model_folder, packaged_smollm2
from memrl.policy.tokenization import encode_prompt, encode_prompts, encode_symbols, find_stop
from memrl.task.answer_format import AnswerFormat, task_format
from memrl.task.answer_tree import AnswerTree, expand_automaton
from memrl.task.automaton import AnswerAutomaton, build_automaton
from memrl.task.prompt import prompt_text

_HUB_SECONDS, _MOST_HUB_SECONDS = 3.0, 10.0
"""So long a hub may take to answer: where its model is at hand otherwise, and where it is not."""


@dataclass(frozen=True, eq=False)
class EncodedTask:
    """One prompt and all its answers, in the tokens of one tokenizer.

    Attributes:
        N: number of answers, or of values of a symbol.
        env_type: single_step, or multi_step.
        prompt_format: plain, or chat.
        bit_separator: text between bits.
        prompt: the prompt's template; empty: the shortest prompt there is.
        keyed: whether a key stands before the prompt, `k137 ` or another.
        prompt_ids: token ids of the prompt, with key 0 where it is keyed.
        automaton: which tokens may follow in an answer.
        stop_token_id: the token that ends a single_step answer; None for multi_step, whose answers end by their length.
        tokenizer: whose tokens these are.
        listed: the answers of `tree`; None: all of them, or of very many sequences a random sample.
    """

    N: int
    env_type: EnvType
    prompt_format: PromptFormat
    bit_separator: str
    prompt: str
    keyed: bool
    prompt_ids: tuple[int, ...]
    automaton: AnswerAutomaton
    stop_token_id: int | None
    tokenizer: PreTrainedTokenizerBase
    listed: AnswerTree | None = None

    @property
    def num_env_steps(self) -> int:
        """env_steps of a whole answer: 1, or the number of bits."""
        return self.answer_format.num_env_steps

    @property
    def secret_length(self) -> int | None:
        """Symbols of the secret where it is a sequence."""
        return self.num_env_steps if self.answer_format.is_sequence else None

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer, stop token included."""
        return self.automaton.depth

    @property
    def answer_format(self) -> AnswerFormat:
        """How a secret is answered."""
        return self.automaton.answer_format

    @property
    def tree(self) -> AnswerTree:
        """All answers, listed; of very many sequences a random sample."""
        return self.listed or _list_tree(self.automaton)

    def with_key(self, key: int) -> "EncodedTask":
        """The same task behind the prompt of one key: the same automaton, other prompt_ids."""
        assert self.keyed, "the task's prompt must be keyed"
        text = prompt_text(self.N, self.env_type, self.prompt, self.secret_length, key)
        return replace(self, prompt_ids=encode_prompt(self.tokenizer, text, self.prompt_format).ids)

    def with_answers(self, digits: Int[np.ndarray, "answer env_step"]) -> "EncodedTask":
        """The same task with other answers listed in its tree."""
        return replace(self, listed=expand_automaton(self.automaton, digits))


@lru_cache(maxsize=256)
def _list_tree(automaton: AnswerAutomaton) -> AnswerTree:
    return expand_automaton(automaton, automaton.answer_format.list_answers())


def load_base_model(
    model: str, dtype: Dtype = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
    address = bring_model(model)
    tokenizer = _load_checked_tokenizer(model, address)
    try:
        with _hide_progress_bars():
            network: Any = AutoModelForCausalLM.from_pretrained(
                address, dtype=getattr(torch, dtype), trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(model, error) from error
    return network.to(device).eval(), tokenizer


def bring_model(model: str) -> str:
    """What transformers and vLLM load of a model: a folder, which is made where it has to be, or a hub name.

    Raises:
        ValueError: the model can't be read.
    """
    address = check_model_folder(model)
    if model == SMOLLM2:
        packaged = packaged_smollm2()
        # What is there already stays the model, whether the hub answers today or not.
        is_here = packaged is not None and dequantized_folder(packaged).is_dir()
        if not is_here and _hub_has(SMOLLM2_HUB_NAME):
            return SMOLLM2_HUB_NAME
        if packaged is None:
            raise ValueError(f"{RULE}, got {model!r} (no hub answers; `uv sync --extra pretrained` brings its weights)")
        address = str(packaged)
    if not address.endswith(".gguf"):
        if not Path(address).is_dir():
            _check_hub(address)
        return address
    try:
        with _hide_progress_bars():
            return str(dequantize(Path(address)))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(model, error) from error


@dataclass(frozen=True)
class BaseFiles:
    """What a base model was read from.

    Attributes:
        weights: stands for weights and architecture, 16 hex digits.
        tokenizer: stands for tokenizer and chat template, 16 hex digits.
        commit: the hub's commit; None for a model that is not the hub's.
    """

    weights: str
    tokenizer: str
    commit: str | None


@lru_cache(maxsize=64)
def identify_files(model: str) -> BaseFiles:
    """What a model that can be read here is read from.

    Raises:
        ValueError: the model can't be read.
    """
    address, commit = Path(bring_model(model)), None
    if not address.is_dir():
        try:
            address = Path(str(cached_file(str(address), "config.json"))).parent
        except OSError as error:
            raise _unreadable(model, error) from error
        commit = address.name
    return BaseFiles(hash_weights(address), hash_tokenizer(address), commit)


@cache
def _check_hub(name: str) -> None:
    """Looks whether a hub answers for a name before transformers does, which takes minutes to find that none does.

    A model that was brought before is then read from the cache, without asking for news of it.

    Raises:
        ValueError: no hub answers, and the model is not in the cache.
    """
    if constants.HF_HUB_OFFLINE:
        return
    is_here = _is_cached(name)
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS if is_here else _MOST_HUB_SECONDS)
    except HfHubHTTPError:
        return  # it answers: transformers says what about the model
    except Exception as error:  # whatever keeps it from answering, by whatever client the hub's package has
        if not is_here:
            reason = "no folder of this machine, and no hub answers for it"
            raise ValueError(f"{RULE}, got {name!r} ({reason}: {error})") from error
        constants.HF_HUB_OFFLINE = True  # what the environment's variable of this name sets, for this process


def _is_cached(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _hub_has(name: str) -> bool:
    """Whether a hub's model is in its cache already, or the hub answers within seconds."""
    if _is_cached(name):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception:  # whatever keeps the hub from answering, the packaged weights are there
        return False
    return True


def save_base_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model and its tokenizer as a folder that `load_base_model` reads: safetensors and JSON."""
    drop_sampling_settings(model)
    with _hide_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # they are written for the owner alone, and others can't install a package of such files


def drop_sampling_settings(model: PreTrainedModel) -> None:
    """Keeps only the special tokens of a model's generation settings: others may be such as can't be saved again."""
    old = model.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(old, name, None) for name in names})


def _load_checked_tokenizer(model: str, address: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(address, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(model, error) from error


@contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Keeps transformers' bars of loaded and written tensors from breaking the live line of a command."""
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
    tokenizer: PreTrainedTokenizerBase,
    N: int,
    env_type: EnvType,
    prompt_format: PromptFormat = "plain",
    bit_separator: str = "",
    prompt: str = "",
    secret_length: int | None = None,
    keyed: bool = False,
) -> EncodedTask:
    """Encodes the prompt and the symbols of its answers; the same arguments give the same object.

    A single_step answer ends with a stop token; a multi_step answer is k env_steps. See `memrl.policy.tokenization`.

    Raises:
        ValueError: the tokenizer merges bits, or prompt and answer, does not say the text again, or has no
            end-of-sequence token; or there is no chat template for prompt_format=chat.
    """
    encoded = encode_prompt(
        tokenizer, prompt_text(N, env_type, prompt, secret_length, 0 if keyed else None), prompt_format
    )
    answer_format = task_format(N, env_type, bit_separator, secret_length)
    stop = find_stop(tokenizer, prompt_format) if answer_format.ends_with_stop else None
    automaton = build_automaton(answer_format, *encode_symbols(encoded, answer_format), stop)
    return EncodedTask(
        N, env_type, prompt_format, bit_separator, prompt, keyed, encoded.ids, automaton, stop, tokenizer
    )


def encode_cell(tokenizer: "PreTrainedTokenizerBase", cell: TrainConfig) -> EncodedTask:
    """Encodes the task of a cell; see `encode_task`."""
    question = (cell.N, cell.env_type, cell.prompt_format, cell.bit_separator, cell.prompt, cell.secret_length)
    return encode_task(tokenizer, *question, cell.num_keys is not None)


@lru_cache(maxsize=64)
def encode_keys(
    tokenizer: PreTrainedTokenizerBase, task: EncodedTask, num_keys: int | None
) -> Sequence[tuple[int, ...]]:
    """Token ids of a task's prompt behind every key from 0, or of its one prompt where it has no keys.

    Raises:
        ValueError: as for `encode_task`.
    """
    if num_keys is None:
        return [task.prompt_ids]
    question = (task.N, task.env_type, task.prompt, task.secret_length)
    return encode_prompts(tokenizer, [prompt_text(*question, key) for key in range(num_keys)], task.prompt_format)
