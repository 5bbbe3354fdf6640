"""What a command can't go on with, told to its user in one line."""


class StartError(Exception):
    """Something that the work needs can't start: Ray, an engine, wandb. One line that says what to do."""


class RefusedError(StartError):
    """Bad input that shows only when the work starts, such as a model that an engine can't serve."""


class WriteError(StartError):
    """Results can't be written any more: the disk is full, or the folder may not be written."""


def tell_error(error: BaseException) -> str:
    r"""What an error says, in one line.

    >>> tell_error(OSError("no\nroom"))
    'no room'
    """
    return " ".join(str(error).split())
