"""How every command ends: with one clear line for what the user can mend, and an exit code."""

import errno
import os
import sys
from collections.abc import Callable

from input_pipeline.files import InputError

# Of all errors of the system those that the user can mend.
_USERS_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)


class Failed(Exception):
    """The work has failed, and the message says all about it.

    Attributes:
        code: the command's exit code.
    """

    code = 1


def exit_code(command: Callable[[], None], interrupted: str) -> int:
    """Runs a command; errors that are not bugs become one line on stderr.

    Args:
        command: does the work.
        interrupted: what an interrupted user is told, such as how to go on.

    Returns:
        0 done, 1 failed (`Failed`, or the code it has), 2 wrong input (`InputError`) or a full
        disk, 130 interrupted.
    """
    try:
        command()
    except InputError as error:
        return _end(2, f"error: {error}")
    except Failed as error:
        return _end(error.code, f"error: {error}")
    except KeyboardInterrupt:
        return _end(130, f"interrupted: {interrupted}")
    except OSError as error:
        if error.errno not in _USERS_ERRORS:
            raise
        place = f" at {error.filename}" if error.filename else ""
        reason = os.strerror(error.errno)
        return _end(2, f"error: cannot read or write{place}: {reason}; mend that, run it again")
    return 0


def _end(code: int, line: str) -> int:
    print(line, file=sys.stderr)
    return code
