"""How a secret is written: as symbols of one radix, one for each env_step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from memrl.config import EnvType, TrainConfig
from memrl.limits import MOST_LISTED
from memrl.task.secret import cell_secret, draw_secrets, num_bits

_SAMPLED = 256
_FEWEST_SAMPLED = 16
_SYMBOLS_SAMPLED = 8192


@dataclass(frozen=True)
class AnswerFormat:
    """A secret as digits of one radix, most significant first; each digit is a symbol with a text and an env_step.

    A whole integer is one symbol of radix N; an integer by its bits is k symbols of radix 2; a sequence is so many
    symbols of radix N.

    Attributes:
        radix: values of a symbol.
        num_env_steps: symbols of a whole answer.
        num_answers: how many answers there are: the first ones in lexicographic order of their digits.
        separator: text before every symbol but the first.
        ends_with_stop: whether a stop token ends the answer; otherwise it ends with its last symbol.
        is_sequence: whether reward functions see the symbols, and not the integer that they write.
    """

    radix: int
    num_env_steps: int
    num_answers: int
    separator: str = ""
    ends_with_stop: bool = False
    is_sequence: bool = False

    @property
    def signal_bits(self) -> float:
        """log2 of the number of answers."""
        return math.log2(self.num_answers)

    @property
    def last_digits(self) -> list[int]:
        """The digits of the last answer, one per env_step."""
        return [(self.num_answers - 1) // place % self.radix for place in self._places]

    @property
    def num_prefixes(self) -> int:
        """Distinct beginnings of digit vectors, the empty and the whole ones included."""
        return sum(self.radix**length for length in range(self.num_env_steps + 1))

    @property
    def _places(self) -> list[int]:
        return [self.radix**power for power in range(self.num_env_steps - 1, -1, -1)]

    def digits(self, values: int | Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape env_step"]:
        """Writes integers, the numbers of answers, as digits.

        >>> integer_format(8, "multi_step").digits(np.array([5, 1])).tolist()
        [[1, 0, 1], [0, 0, 1]]
        """
        # A single number may be larger than what an array of integers holds.
        rest = values if isinstance(values, int) else np.asarray(values, dtype=np.int64)
        digits = np.empty((*np.shape(values), self.num_env_steps), dtype=np.int64)
        for step in range(self.num_env_steps - 1, -1, -1):
            rest, digits[..., step] = divmod(rest, self.radix)
        return digits

    def integers(self, digits: Int[np.ndarray, "*shape env_step"]) -> Int[np.ndarray, "*shape"]:
        """The integers that digits write.

        A digit of -1 is not written; the smallest answer that begins with the written ones is meant.

        >>> integer_format(8, "multi_step").integers(np.array([[1, 0, 1], [1, -1, -1]])).tolist()
        [5, 4]
        """
        return np.asarray(np.maximum(digits, 0) @ np.array(self._places))

    def read(self, digits: Int[np.ndarray, "*shape env_step"]) -> Int[np.ndarray, "..."]:
        """What a reward function sees of an answer: its symbols if it is a sequence, else the integer.

        >>> sequence_format(3, 2).read(np.array([2, -1])).tolist()
        [2, 0]
        >>> integer_format(8, "multi_step").read(np.array([1, 0, 1])).tolist()
        5
        """
        return np.maximum(digits, 0) if self.is_sequence else self.integers(digits)

    def values(self, answers: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "..."]:
        """What a reward function sees of answers that are given by their numbers."""
        return self.digits(answers) if self.is_sequence else answers

    def prefix_numbers(self, digits: Int[np.ndarray, "*shape env_step"]) -> Int[np.ndarray, "*shape"]:
        """Numbers the written beginnings of digit vectors, shorter ones first, from 0 to num_prefixes - 1.

        >>> integer_format(8, "multi_step").prefix_numbers(np.array([[-1, -1, -1], [1, -1, -1], [0, 0, 0]])).tolist()
        [0, 2, 7]
        """
        written = (digits >= 0).sum(axis=-1)
        shorter = np.cumsum([0, *(self.radix**length for length in range(self.num_env_steps))])
        rest = self.radix ** (self.num_env_steps - written)
        return np.asarray(shorter[written] + self.integers(digits) // rest)

    def list_answers(self) -> Int[np.ndarray, "answer env_step"]:
        """Digits of all answers in their order, or of some random ones of very many sequences."""
        if not self.is_sequence or self.num_answers <= MOST_LISTED:
            return self.digits(np.arange(self.num_answers))
        count = min(_SAMPLED, max(_FEWEST_SAMPLED, _SYMBOLS_SAMPLED // self.num_env_steps))
        return np.random.default_rng(0).integers(self.radix, size=(count, self.num_env_steps))

    def symbol_text(self, digit: int) -> str:
        """The text of one symbol, without separator; of one width where no stop token tells symbols apart.

        >>> AnswerFormat(16, 2, 256).symbol_text(7), integer_format(16, "single_step").symbol_text(7)
        ('07', '7')
        """
        return str(digit) if self.ends_with_stop else str(digit).zfill(len(str(self.radix - 1)))

    def spans(self, digits: Sequence[int] | Int[np.ndarray, "env_step"]) -> list[str]:
        """The text of an answer, cut into the spans of its env_steps.

        >>> integer_format(8, "multi_step", " ").spans([1, 0, 1])
        ['1', ' 0', ' 1']
        """
        return [self.separator * (step > 0) + self.symbol_text(int(digit)) for step, digit in enumerate(digits)]


def integer_format(N: int, env_type: EnvType, separator: str = "") -> AnswerFormat:
    """How an integer in 0 .. N-1 is answered: as a decimal (single_step), or by its k bits (multi_step).

    Args:
        N: how many integers there are.
        env_type: one env_step for the whole integer, or one per bit.
        separator: text between bits.
    """
    if env_type == "single_step":
        return AnswerFormat(N, 1, N, ends_with_stop=True)
    return AnswerFormat(2, num_bits(N), N, separator)


def change_separator(answer_format: AnswerFormat, separator: str) -> AnswerFormat:
    """The same answers with another text between their symbols."""
    return replace(answer_format, separator=separator)


def sequence_format(N: int, length: int, separator: str = "") -> AnswerFormat:
    """How a sequence of symbols, each in 0 .. N-1, is answered: one env_step per symbol, ended by the last.

    >>> sequence_format(16, 3, ",").spans([7, 0, 15])
    ['07', ',00', ',15']
    """
    return AnswerFormat(N, length, N**length, separator, is_sequence=True)


def task_format(N: int, env_type: EnvType, separator: str = "", secret_length: int | None = None) -> AnswerFormat:
    """How the secrets of a task are answered: integers, or sequences where a length is given."""
    if secret_length is None:
        return integer_format(N, env_type, separator)
    return sequence_format(N, secret_length, separator)


def cell_format(cell: TrainConfig) -> AnswerFormat:
    """How the secret of a cell is answered."""
    return task_format(cell.N, cell.env_type, cell.bit_separator, cell.secret_length)


def cell_digits(cell: TrainConfig) -> Int[np.ndarray, "env_step"]:
    """The digits of the secret of a cell without keys."""
    return cell_format(cell).digits(cell_secret(cell))


def key_digits(cell: TrainConfig) -> Int[np.ndarray, "key env_step"]:
    """The digits of the secret of each of a cell's keys, of a small type; of a cell without keys those of its one."""
    if cell.num_keys is None:
        return cell_digits(cell)[None]
    symbols, answer_format = draw_secrets(cell.N, cell.seed, cell.num_keys, cell.secret_length or 1), cell_format(cell)
    digits = symbols if answer_format.is_sequence else answer_format.digits(symbols[:, 0])
    return digits.astype(np.min_scalar_type(-answer_format.radix))
