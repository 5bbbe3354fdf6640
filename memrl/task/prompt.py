"""What the policy reads, and the texts that answer it."""

from memrl.config import EnvType
from memrl.task.secret import num_bits


def prompt_text(N: int, env_type: EnvType) -> str:
    """The prompt of a cell; the same for every secret, so it tells nothing.

    >>> prompt_text(64, "single_step"), prompt_text(64, "multi_step")
    ('0-63:', 'bits 0-63:')
    """
    span = f"0-{N - 1}:"
    return span if env_type == "single_step" else f"bits {span}"


def answer_steps(guess: int, N: int, env_type: EnvType, separator: str = "") -> list[str]:
    """The text of one answer, cut into the spans of its env_steps.

    single_step: the decimal integer without leading zeros, one span. multi_step: ceil(log2 N) bits, most
    significant first, one span a bit, each but the first preceded by the separator.

    >>> answer_steps(5, 64, "single_step"), answer_steps(5, 8, "multi_step", " ")
    (['5'], ['1', ' 0', ' 1'])
    """
    if env_type == "single_step":
        return [str(guess)]
    bits = format(guess, f"0{num_bits(N)}b")
    return [bit if i == 0 else separator + bit for i, bit in enumerate(bits)]
