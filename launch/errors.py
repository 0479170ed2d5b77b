"""Errors that end a command with one line, and the exit codes they stand for."""

import errno
import os
import re
from collections.abc import Iterable

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
# How TensorStore's errors begin, and those of them that a later start may not meet.
_PASSING = ("ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
_STATUS = re.compile("|".join((*_PASSING, "PERMISSION_DENIED", "UNAUTHENTICATED")))
_RIGHTS = "log in (gcloud auth application-default login), or ask for access to that bucket"
_AGAIN = "run the same command again"
# Whose errors are a store's: a connection that is lost or refused, an answer that came too late.
_GOOGLE = ("google.api_core", "google.auth", "google.cloud")
_PACKAGES = ("aiohttp", "fsspec", "gcsfs", "requests", *_GOOGLE)
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
    if _package(error):  # Some of their lost connections have a number and a name.
        return None
    if error.errno is None:
        return (
            f"cannot read or write: {_place(error)}{error}" if isinstance(error, _TEXTS) else None
        )
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


def store_failure(error: BaseException) -> Exception | None:
    """What stands for an error of an object store; None for all others.

    Returns:
        `InputError` for what the user has no right to, or a name that does not fit; `Unreachable`
        for what may pass by itself. The packages have tried again by then.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    package = _package(error)
    kind: type[Exception] | None = None
    # gcsfs has no kinds of its own for what is forbidden or wrong, TensorStore none at all.
    if isinstance(error, OSError) and error.errno is None and text.startswith("Forbidden"):
        kind = InputError
    elif isinstance(error, ValueError) and text.startswith("Bad Request: "):
        kind = InputError
    elif isinstance(error, ValueError) and (status := _STATUS.match(text)):
        kind = Unreachable if status[0] in _PASSING else InputError
    elif package in _GOOGLE and not _passes(error):
        kind = InputError
    elif package:
        code = str(getattr(error, "code", "")) if package == "gcsfs" else ""
        kind = InputError if code in ("400", "401", "403") else Unreachable
    if kind is None:
        return None
    remedy = _AGAIN if kind is Unreachable else _RIGHTS
    return kind(f"{_place(error)}the store says {text}: {remedy}")


def _package(error: BaseException) -> str:
    """Which of the store's it is of; empty for all others."""
    module = f"{type(error).__module__}."
    return next((package for package in _PACKAGES if module.startswith(f"{package}.")), "")


def _place(error: BaseException) -> str:
    """What those who raised it again have noted."""
    return "".join(f"{note}: " for note in getattr(error, "__notes__", ()))


def _passes(error: BaseException) -> bool:
    """Whether an error of Google's own packages may not come again."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return code >= 500 or code in (408, 429)
    # Who asks for a login and gets no answer, or one that says so, can ask again.
    return type(error).__name__ == "TransportError" or bool(getattr(error, "retryable", False))


def _mount_point(path: str) -> str:
    path = os.path.abspath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def listed(names: Iterable[object], limit: int = 6) -> str:
    """Names for a message: all of a few, else the first ones and how many more there are."""
    texts = [str(name) for name in names]
    if len(texts) <= limit:
        return ", ".join(texts)
    return f"{', '.join(texts[: limit - 1])} and {len(texts) - limit + 1:,} more"


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


class Unreachable(Failed):
    """An object store does not answer; what is saved is kept, and the same command goes on."""

    code = PREEMPTED
    word = "lost"


class Diverged(Failed):
    """Training or drawing has left the finite numbers; a restart would end in the same place."""


def outcome(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the line that an error ends a command with; None for a bug."""
    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, Failed):
        return error.code, f"{error.word}: {error}"
    if isinstance(error, OSError) and (reason := users_error(error)):
        return 2, f"error: {reason}; fix that and run it again"
    failure = store_failure(error)
    return None if failure is None else outcome(failure)
