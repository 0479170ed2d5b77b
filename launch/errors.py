"""Errors that end a command with one line, and the exit codes they stand for."""

import errno
import os

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h
# What the user can mend although no file is named: full disks, limits of the system, hardware.
_NAMELESS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EROFS,
)
# What no file that the user names brings about: our own handling of files, memory and processes.
_OURS = (
    errno.EAGAIN,
    errno.EBADF,
    errno.ECHILD,
    errno.EDEADLK,
    errno.EFAULT,
    errno.EINTR,
    errno.EPIPE,
    errno.ESPIPE,
    errno.ESRCH,
)
# Object stores raise these without a number or a name, with a text that says all.
_TEXTS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def users_error(error: OSError) -> str | None:
    """What a line says of an error of the system that the user can mend; None for all others.

    With a file's name nearly every one can be: a folder where a file should be, a loop of links, a
    name that is too long. Lost connections and children are bugs, or accidents that a traceback
    tells more of.
    """
    if isinstance(error, ConnectionError | TimeoutError | ChildProcessError):
        return None
    if error.errno is None:
        return f"cannot read or write: {error}" if isinstance(error, _TEXTS) else None
    if error.errno in _OURS or (error.filename is None and error.errno not in _NAMELESS):
        return None
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    location = f" at {' and '.join(names)}" if names else ""
    disk = ""
    if names and error.errno in (errno.ENOSPC, errno.EDQUOT):
        disk = f" (the disk at {_mount_point(names[0])})"
    return f"cannot read or write{location}: {os.strerror(error.errno)}{disk}"


def _mount_point(path: str) -> str:
    path = os.path.abspath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


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
