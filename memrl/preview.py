"""A preview: the prompt token by token, answers sampled from the policy, and how near it is to a uniform secret."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memrl.config import TrainConfig
from memrl.policy.base_model import EncodedTask, encode_cell, load_base_model
from memrl.policy.calibration import Prior, measure_prior
from memrl.suggest import as_typed
from memrl.task.answer_format import key_digits
from memrl.task.env import step_rewards
from memrl.task.parse import ParsedAnswer, collect_outcomes, parse_answer
from memrl.task.reward import Channel, build_channel


def show_preview(config: TrainConfig, num_answers: int, temperature: float) -> None:
    """Samples answers of the base policy, and prints them with the prompt and the prior.

    Args:
        config: whose prompt and channel are shown.
        num_answers: answers to sample.
        temperature: of the sampling.

    Raises:
        ValueError: the model or the reward can't be read.
    """
    channel = build_channel(config)
    model, tokenizer = load_base_model(config.model, config.dtype)
    task = encode_cell(tokenizer, config)
    answers = sample_answers(model, task, num_answers, temperature, config.seed)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    print_preview(console, config, channel, task, tokenizer, answers, measure_prior(model, task))


@dataclass(frozen=True)
class SampledAnswer:
    """One episode of the preview.

    Attributes:
        tokens: sampled token ids; the last one ended the episode.
        log2_p: log2 P(tokens) under the policy itself, at temperature 1; bits, at most 0.
        parsed: what the tokens say.
    """

    tokens: tuple[int, ...]
    log2_p: float
    parsed: ParsedAnswer


def sample_answers(
    model: PreTrainedModel, task: EncodedTask, num_answers: int, temperature: float, seed: int
) -> list[SampledAnswer]:
    """Samples answers token by token, each until it is whole or malformed.

    Args:
        model: the policy.
        task: the prompt and all its answers.
        num_answers: answers to sample, independently.
        temperature: the logits are divided by it, above 0.
        seed: any integer from 0; the same seed gives the same answers.

    Returns:
        The answers, in the order in which they were drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in range(num_answers)]
    log2_p = [0.0] * num_answers
    parsed: list[ParsedAnswer | None] = [None] * num_answers
    while open_rows := [row for row in range(num_answers) if parsed[row] is None]:
        input_ids = torch.tensor([[*task.prompt_ids, *written[row]] for row in open_rows], device=model.device)
        with torch.inference_mode():
            output = model(input_ids=input_ids, use_cache=False)
        logits = output.logits[:, -1].double().cpu()
        drawn = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)
        scores = torch.log_softmax(logits, dim=-1).gather(1, drawn) / math.log(2)
        for row, token, score in zip(open_rows, drawn[:, 0].tolist(), scores[:, 0].tolist(), strict=True):
            written[row].append(token)
            log2_p[row] += score
            parsed[row] = parse_answer(task.automaton, written[row])
    return [
        SampledAnswer(tuple(tokens), bits, answer)
        for tokens, bits, answer in zip(written, log2_p, parsed, strict=True)
        if answer is not None
    ]


def format_rewards(rewards: Sequence[float]) -> str:
    """Writes the rewards of one episode, one per env_step; a dot where the episode took no env_step.

    >>> format_rewards([1.0, 0.0, float("nan")]), format_rewards([0.8333333])
    ('1 0 ·', '0.833')
    """
    return " ".join("·" if math.isnan(reward) else f"{reward:.3g}" for reward in rewards)


def show_text(text: str) -> str:
    r"""Makes blanks at the borders and line ends of a text visible.

    >>> show_text(" 0"), show_text("a\n")
    ('␣0', 'a⏎')
    """
    stripped = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    right = len(text) - left - len(stripped)
    return ("␣" * left + stripped + "␣" * right).replace("\n", "⏎")


def build_prompt_columns(task: EncodedTask, tokenizer: PreTrainedTokenizerBase) -> Columns:
    """Lays the prompt out token by token: the text it stands for, and its id below."""
    tokens = [Text(f"{show_text(decode(tokenizer, [token]))}\n{token}") for token in task.prompt_ids]
    return Columns(tokens, padding=(0, 2))


def show_secret(task: EncodedTask, digits: np.ndarray) -> str:
    """The integer or the sequence that digits write."""
    answer_format = task.answer_format
    if not answer_format.is_sequence:
        return str(answer_format.integers(digits))
    return "".join(answer_format.spans(np.maximum(digits, 0)))


def build_answer_table(
    channel: Channel,
    secret: np.ndarray,
    task: EncodedTask,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[SampledAnswer],
) -> Table:
    """Lays sampled answers out, one per row: tokens, guess, rewards against the secret, and surprise."""
    rewards = step_rewards(channel, collect_outcomes([a.parsed for a in answers]), task.answer_format.read(secret))
    title = "answers" if task.num_env_steps == 1 else f"answers, {task.num_env_steps} env_steps each"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for heading in ("tokens", "guess", "reward" if task.num_env_steps == 1 else "rewards", "bits"):
        table.add_column(heading, no_wrap=True)
    for answer, row in zip(answers, rewards, strict=True):
        pieces = "|".join(show_text(decode(tokenizer, [token])) for token in answer.tokens)
        guess = show_secret(task, np.array(answer.parsed.digits))
        told = guess if answer.parsed.well_formed else "malformed"
        table.add_row(Text(pieces), told, format_rewards(row), f"{-answer.log2_p:.2f}")
    return table


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of some tokens, special ones by their names, exactly as they stand."""
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def print_preview(
    console: Console,
    config: TrainConfig,
    channel: Channel,
    task: EncodedTask,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[SampledAnswer],
    prior: Prior,
) -> None:
    """Prints prompt, secret, answers, and how near the policy is to a uniform secret."""
    secret = key_digits(config)[0]
    source = "fixed" if config.secret is not None else f"drawn from N={config.N} and seed={config.seed}"
    if config.num_keys is not None:
        source += f", key 0 of {config.num_keys:,}"
    span = f"0 .. {config.N - 1}" + ("" if config.secret_length is None else f", {config.secret_length} times")
    console.print(f"prompt: {show_text(decode(tokenizer, task.prompt_ids))}")
    console.print(build_prompt_columns(task, tokenizer))
    console.print(f"\nsecret: {show_secret(task, secret)} of {span} ({source}), channel {channel.name}\n")
    console.print(build_answer_table(channel, secret, task, tokenizer, answers))
    console.print("bits: -log2 of the answer's probability under the policy, stop token included")
    warmup = as_typed("python -m memrl.warmup_train")
    verdict = "calibrated" if prior.is_calibrated else f"not calibrated: run {warmup} on it first"
    console.print(
        f"signal {config.signal_bits:.2f} bits; prior {prior.kl_bits:.3f} bits from uniform,"
        f" well-formed mass {prior.well_formed_mass:.4f} ({verdict})"
    )
