"""What the policy reads."""

from memrl.config import EnvType


def prompt_text(
    N: int, env_type: EnvType, template: str = "", secret_length: int | None = None, key: int | None = None
) -> str:
    """The prompt of a cell, or of one of its keys; the same for every secret, so it tells nothing.

    Args:
        N: number of integers, or of values of a symbol.
        env_type: what is asked for: an integer, or its symbols.
        template: the prompt itself, with {N}, {last} (N - 1) and {key} to be filled in; unset: the shortest there is.
        secret_length: symbols of a sequence; None for an integer.
        key: what tells a prompt from the cell's others, in the place of the template's {key}, else in front; None where
            there is one prompt.

    >>> prompt_text(64, "single_step"), prompt_text(64, "multi_step")
    ('0-63:', 'bits 0-63:')
    >>> prompt_text(2, "multi_step", secret_length=256)
    '256 of 0-1:'
    >>> prompt_text(64, "single_step", "Guess a number from 0 to {last}: ")
    'Guess a number from 0 to 63: '
    >>> prompt_text(64, "multi_step", key=137), prompt_text(64, "single_step", "Box {key} holds ", key=137)
    ('k137 bits 0-63:', 'Box 137 holds ')
    """
    if key is not None and "{key}" in template:
        return template.format(N=N, last=N - 1, key=key)
    if key is not None:
        return f"k{key} {prompt_text(N, env_type, template, secret_length)}"
    if template:
        return template.format(N=N, last=N - 1)
    span = f"0-{N - 1}:"
    if secret_length is not None:
        return f"{secret_length} of {span}"
    return span if env_type == "single_step" else f"bits {span}"
