"""What the policy reads."""

from memrl.config import EnvType


def prompt_text(N: int, env_type: EnvType) -> str:
    """The prompt of a cell; the same for every secret, so it tells nothing.

    >>> prompt_text(64, "single_step"), prompt_text(64, "multi_step")
    ('0-63:', 'bits 0-63:')
    """
    span = f"0-{N - 1}:"
    return span if env_type == "single_step" else f"bits {span}"
