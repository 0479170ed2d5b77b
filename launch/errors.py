"""Errors that end a command with one line, and the exit codes they stand for."""

import errno

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h
# Of all errors of the system those that the user can mend.
USERS_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)


class InputError(Exception):
    """Wrong input, told in one line: what is wrong, where, and what to do."""


class Failed(Exception):
    """The work has not come to its end, and the message says all about it.

    Attributes:
        code: the command's exit code.
        word: what the line on stderr begins with.
    """

    code = 1
    word = "error"


class Preempted(Failed):
    """The machine was needed elsewhere; all work is saved, and the same command goes on."""

    code = PREEMPTED
    word = "preempted"


class Diverged(Failed):
    """Training has left the finite numbers; a restart would end in the same place."""
