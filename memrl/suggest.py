"""What somebody may have meant who wrote a word that is unknown, and what they can paste."""

import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches

_ABBREVIATIONS = {
    **{"lr": "learning_rate", "bs": "batch_size", "batch": "batch_size", "epsilon": "adam_epsilon"},
    **{"max_steps": "n_steps", "num_steps": "n_steps", "updates": "n_steps", "episodes": "max_episodes"},
    **{"r": "lora_rank", "rank": "lora_rank", "alpha": "lora_alpha", "reward": "reward_type", "env": "env_type"},
}
"""What other tools call our fields."""

_MOST_CHOICES = 16


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the choice that a word stands for, or a few choices where it stands for none.

    A word stands for a choice that differs in case alone, whose initials or last part it is, or that is spelled alike.

    >>> did_you_mean("binery", ["binary", "distance"])
    "; did you mean 'binary'?"
    >>> did_you_mean("lr", ["lora_rank", "learning_rate", "N"]), did_you_mean("n", ["n_steps", "N"])
    ("; did you mean 'learning_rate'?", "; did you mean 'N'?")
    """
    choices = list(choices)
    means: list[Callable[[str], bool]] = [
        lambda choice: choice.lower() == word.lower(),
        lambda choice: choice == _ABBREVIATIONS.get(word.lower()),
        lambda choice: choice.endswith(f"_{word}"),
        lambda choice: choice in get_close_matches(word, choices, n=1),
    ]
    for stands_for in means:
        meant = [choice for choice in choices if stands_for(choice)]
        if len(meant) == 1:
            return f"; did you mean {meant[0]!r}?"
    return f"; choose from {', '.join(choices)}" if len(choices) <= _MOST_CHOICES else "; --help lists them all"


def as_typed(command: str) -> str:
    """A command as it can be pasted where this process was started: below uv, with `uv run` before it."""
    # `uv run` says so to the programs that it starts.
    return f"uv run {command}" if "UV_RUN_RECURSION_DEPTH" in os.environ else command


def suggest_close(word: object, choices: Iterable[str]) -> str:
    """What `did_you_mean` returns where a choice is spelled nearly alike, else nothing."""
    choices = list(choices)
    return did_you_mean(word, choices) if isinstance(word, str) and get_close_matches(word, choices) else ""
