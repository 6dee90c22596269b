"""Exceptions that entry points print as one line."""

LONGEST = 2000
"""Characters of a line; of more, which a file may hold in a value, the middle is left out."""


def one_line(text: str) -> str:
    """A text as one line that can be printed: control characters and the like are spelt out."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    half = LONGEST // 2 - 1
    return line if len(line) <= LONGEST else f"{line[:half]}…{line[-half:]}"


def reason_of(error: BaseException) -> str:
    """What an exception says, in a line; of one that the system raises, the system's own words."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or one_line(str(error)) or type(error).__name__


MISREAD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What is raised of a value that is not what it is taken for, such as a file's."""


class UserError(ValueError):
    """A mistake in what the user gave; entry points print it as one line and exit with 2.

    The message is that line: what is wrong, where, and what would be right; made one by `one_line`,
    whatever a file holds that it quotes.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class TrainingError(RuntimeError):
    """A run that went wrong by itself; entry points print it as one line and exit with 1."""


class Stopped(RuntimeError):
    """A run that was told to stop; entry points print it as one line and exit with 75.

    That code (EX_TEMPFAIL of sysexits.h) tells launchers to start the same command again.
    """
