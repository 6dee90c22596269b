"""Exceptions that entry points print as one line."""


class UserError(ValueError):
    """A mistake in what the user gave; entry points print it as one line and exit with 2.

    The message is that line: what is wrong, where, and what would be right.
    """


class TrainingError(RuntimeError):
    """A run that went wrong by itself; entry points print it as one line and exit with 1."""


class Stopped(RuntimeError):
    """A run that was told to stop; entry points print it as one line and exit with 75.

    That code (EX_TEMPFAIL of sysexits.h) tells launchers to start the same command again.
    """
