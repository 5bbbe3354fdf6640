"""A prompt and its answers in a tokenizer's tokens, as the model itself would meet them.

Prompt and answer are encoded as one text, and what follows the prompt's tokens is the answer: so a blank that a
tokenizer puts before every text is not taken for part of an answer, and digits are cut as they are cut behind this
prompt. A plain prompt begins with what the tokenizer begins every text with; a chat is what the model's template
writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from memrl.config import PromptFormat
from memrl.task.answer_format import AnswerFormat, change_separator

_MOST_ANSWERS_CHECKED = 4096
"""Up to so many, each answer's tokens are compared with those of its symbols."""

_RANDOM_ANSWERS_CHECKED = 64

_SEPARATORS = (",", " ", "-", "\n", " ,", " - ", ";", "|")
"""Tried in this order for one that works."""

_DATE = date(2024, 7, 26)
"""What a chat template that writes the date is told: a prompt must be the same tomorrow."""

_MARK = "memrl"


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt, ready to have answers encoded behind it.

    Attributes:
        tokenizer: the tokenizer.
        text: what the tokenizer is given for it: for a chat, what the template writes.
        start: token ids that the tokenizer itself puts before a text.
        ids: token ids of the whole prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    start: tuple[int, ...]
    ids: tuple[int, ...]

    def encode_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of some texts behind the prompt.

        Raises:
            ValueError: the tokenizer merges the end of the prompt with the beginning of an answer.
        """
        own = list(self.ids[len(self.start) :])
        encoded = _encode(self.tokenizer, [self.text + answer for answer in answers])
        for answer, ids in zip(answers, encoded, strict=True):
            if ids[: len(own)] != own:
                raise ValueError(
                    f"prompt must end so that the tokenizer does not merge it with an answer, got"
                    f" {self.text[-20:]!r} before {answer[:20]!r} (let it end with a colon, a blank or a line end)"
                )
        return [ids[len(own) :] for ids in encoded]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, prompt_format: PromptFormat) -> EncodedPrompt:
    """Encodes a prompt.

    Raises:
        ValueError: there is no chat template for prompt_format=chat, or the tokens do not say the text.
    """
    start: tuple[int, ...] = ()
    written = text
    if prompt_format == "plain":
        start = _find_start(tokenizer, text)
    else:
        written = render_chat(tokenizer, text)
    ids = (*start, *_encode(tokenizer, [written])[0])
    _check_said(tokenizer, ids, text.strip())
    return EncodedPrompt(tokenizer, written, start, ids)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompt_format: PromptFormat
) -> list[tuple[int, ...]]:
    """Token ids of many prompts of one form at once; the first and the last are checked as `encode_prompt` does.

    Raises:
        ValueError: as for `encode_prompt`.
    """
    first, *_ = (encode_prompt(tokenizer, text, prompt_format) for text in (texts[0], texts[-1]))
    written = texts if prompt_format == "plain" else [render_chat(tokenizer, text) for text in texts]
    return [(*first.start, *ids) for ids in _encode(tokenizer, list(written))]


def render_chat(tokenizer: PreTrainedTokenizerBase, text: str, answer: str | None = None) -> str:
    """What the model's chat template writes: up to where an answer is to begin, or with that answer given.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError("prompt_format must be plain for a tokenizer without a chat template, got chat")
    messages = [{"role": "user", "content": text}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    # Models that think before they answer are told not to: the answer follows the prompt at once.
    rendered: Any = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=answer is None,
        tokenize=False,
        enable_thinking=False,
        date_string=_DATE.strftime("%d %b %Y"),
        strftime_now=_DATE.strftime,
    )
    return rendered


def find_stop(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> int:
    """The token that ends an answer: in a chat the special token that ends the template's turn, else the end of text.

    Raises:
        ValueError: there is none.
    """
    stop: Any = tokenizer.eos_token_id
    if prompt_format == "chat":
        ending = render_chat(tokenizer, _MARK, _MARK).rpartition(_MARK)[2]
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        stop = next((token for token in _encode(tokenizer, [ending])[0] if token in special), stop)
    if stop is None:
        raise ValueError("model must have an end-of-sequence token for env_type=single_step, got a tokenizer without")
    return int(stop)


def encode_symbols(prompt: EncodedPrompt, answer_format: AnswerFormat) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each digit as the first symbol of an answer, and as a later one, where there is one.

    Raises:
        ValueError: the tokenizer merges symbols; the message names a separator that keeps it from it, if one is known.
    """
    merged = _find_merged(prompt, answer_format, _sample_answers(answer_format, _MOST_ANSWERS_CHECKED))
    if not isinstance(merged, str):
        return merged
    known = next((text for text in _SEPARATORS if _separates(prompt, change_separator(answer_format, text))), None)
    advice = f"; {known!r} does" if known else ""
    raise ValueError(
        f"bit_separator must keep the tokenizer from merging bits, got {answer_format.separator!r},"
        f" under which {merged!r} is not {answer_format.num_env_steps} spans of tokens of its own{advice}"
    )


def _separates(prompt: EncodedPrompt, answer_format: AnswerFormat) -> bool:
    answers = _sample_answers(answer_format, _RANDOM_ANSWERS_CHECKED)
    return not isinstance(_find_merged(prompt, answer_format, answers), str)


def _find_merged(
    prompt: EncodedPrompt, answer_format: AnswerFormat, answers: np.ndarray
) -> tuple[list[list[int]], list[list[int]]] | str:
    """The symbols' token ids where they write each of the answers, digits (answers, env_steps); else one they don't."""
    texts = [answer_format.symbol_text(digit) for digit in range(answer_format.radix)]
    first = prompt.encode_answers(texts)
    later: list[list[int]] = []
    if answer_format.num_env_steps > 1:
        begun = prompt.encode_answers([texts[0] + answer_format.separator + text for text in texts])
        later = [ids[len(first[0]) :] for ids in begun]
    written = ["".join(answer_format.spans(digits)) for digits in answers]
    for digits, text, whole in zip(answers.tolist(), written, prompt.encode_answers(written), strict=True):
        symbols = [(later if step else first)[digit] for step, digit in enumerate(digits)]
        if whole != [token for ids in symbols for token in ids] or not all(symbols):
            return text
    checked = list(zip(written, prompt.encode_answers(written), strict=True))[:_RANDOM_ANSWERS_CHECKED]
    for text, whole in checked:
        _check_said(prompt.tokenizer, (*prompt.ids, *whole), text)
    return first, later


def _sample_answers(answer_format: AnswerFormat, most: int) -> np.ndarray:
    """Digits of all answers, or of some random ones where there are more than `most`: int64 (answers, env_steps)."""
    if answer_format.num_answers <= most:
        return answer_format.digits(np.arange(answer_format.num_answers))
    shape = (_RANDOM_ANSWERS_CHECKED, answer_format.num_env_steps)
    drawn = np.random.default_rng(0).integers(answer_format.radix, size=shape)
    return drawn if answer_format.num_env_steps > 1 else drawn % answer_format.num_answers


def _find_start(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """What the tokenizer puts before a text of its own accord, such as a token for its beginning."""
    whole = tokenizer(text)["input_ids"]
    plain = _encode(tokenizer, [text])[0]
    starts = (place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return tuple(whole[: next(starts, 0)])


def _check_said(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> None:
    said = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    if text not in said:
        raise ValueError(
            f"model must have a tokenizer whose tokens say the text again, got {said[-60:]!r} for {text[-60:]!r}"
            " (its folder's model_type or tokenizer_class may be another one's)"
        )


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
