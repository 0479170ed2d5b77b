"""Errors that end a command with one line, and their exit codes."""

import errno
import os
import re
from collections.abc import Iterable

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h
# Errors that the user can fix even if they name no file: full disks, system limits, hardware.
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
# Errors that no file of the user's causes: our own handling of files, memory and processes.
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
# How TensorStore's errors begin; the first four may be gone at the next start.
_PASSING = ("ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
_STATUS = re.compile("|".join((*_PASSING, "PERMISSION_DENIED", "UNAUTHENTICATED")))
_RIGHTS = "log in (gcloud auth application-default login), or ask for access to that bucket"
_AGAIN = "run the same command again"
# Errors of these packages are the store's: lost or refused connections, late answers.
_GOOGLE = ("google.api_core", "google.auth", "google.cloud")
_PACKAGES = ("aiohttp", "fsspec", "gcsfs", "requests", *_GOOGLE)
# Object stores raise these with a text that says everything, but no number or file name.
_TEXTS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def users_error(error: OSError) -> str | None:
    """The line for a system error that the user can fix; None for all others.

    Almost every error that names a file is one: a folder in place of a file, a loop of links, a
    name too long. Lost connections and children are bugs or accidents: their traceback says more.
    """
    # 1. Not for the user to fix.
    if isinstance(error, ConnectionError | TimeoutError | ChildProcessError):
        return None
    if _package(error):  # Some of a store's lost connections carry a number and a file name.
        return None
    if error.errno is None:
        return (
            f"cannot read or write: {_place(error)}{error}" if isinstance(error, _TEXTS) else None
        )
    if error.errno in _OURS or (error.filename is None and error.errno not in _NAMELESS):
        return None
    # 2. The files: renaming and linking name two.
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    location = f" at {' and '.join(names)}" if names else ""
    disk = ""
    if names and error.errno in (errno.ENOSPC, errno.EDQUOT):
        disk = f" (the disk at {_mount_point(names[0])})"
    return f"cannot read or write{location}: {os.strerror(error.errno)}{disk}"


def store_failure(error: BaseException) -> Exception | None:
    """`InputError` or `Unreachable` for an error of an object store; None for all others.

    `InputError` means missing rights or a malformed name, `Unreachable` what may pass by itself.
    By then the packages have already retried.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    package = _package(error)
    kind: type[Exception] | None = None
    # gcsfs has no exception types for forbidden or malformed requests, TensorStore none at all.
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
    # Each kind has its own remedy.
    remedy = _AGAIN if kind is Unreachable else _RIGHTS
    return kind(f"{_place(error)}the store says {text}: {remedy}")


def _package(error: BaseException) -> str:
    """The package of a store that an error comes from; '' for all others."""
    module = f"{type(error).__module__}."
    return next((package for package in _PACKAGES if module.startswith(f"{package}.")), "")


def _place(error: BaseException) -> str:
    """The notes that were added when the error was raised again, such as the path."""
    return "".join(f"{note}: " for note in getattr(error, "__notes__", ()))


def _passes(error: BaseException) -> bool:
    """Whether an error of Google's packages may be gone at the next try."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        # HTTP: 408 is a timeout, 429 too many requests.
        return code >= 500 or code in (408, 429)
    # A login that got no answer, or whose answer allows it, can be tried again.
    return type(error).__name__ == "TransportError" or bool(getattr(error, "retryable", False))


def _mount_point(path: str) -> str:
    path = os.path.abspath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def listed(names: Iterable[object], limit: int = 6) -> str:
    """Names for a message: all, or the first `limit - 1` and how many more there are."""
    texts = [str(name) for name in names]
    if len(texts) <= limit:
        return ", ".join(texts)
    return f"{', '.join(texts[: limit - 1])} and {len(texts) - limit + 1:,} more"


class InputError(Exception):
    """Wrong input; the message is one line: what is wrong, where, and what to do."""


class Failed(Exception):
    """The work did not finish, and the message says everything about why."""

    code = 1  # the command's exit code
    word = "error"  # begins the line on stderr


class Preempted(Failed):
    """The machine was needed elsewhere; all work is saved, and the same command resumes it."""

    code = PREEMPTED
    word = "preempted"


class Unreachable(Failed):
    """An object store does not answer; saved work is kept, and the same command resumes it."""

    code = PREEMPTED
    word = "lost"


class Diverged(Failed):
    """Training or sampling produced NaN or infinity; a restart would end in the same place."""


def outcome(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the line on stderr for an error; None for a bug."""
    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, Failed):
        return error.code, f"{error.word}: {error}"
    if isinstance(error, OSError) and (reason := users_error(error)):
        return 2, f"error: {reason}; fix that and run it again"
    failure = store_failure(error)
    return None if failure is None else outcome(failure)
