"""How every command ends: with one clear line for what the user can mend, and an exit code.

| code | means | a scheduler |
|---|---|---|
| 0 | done | goes on |
| 1 | failed: a bug, or training that diverged | does not restart it, it would end the same way |
| 2 | wrong input or a full disk: the line says what to mend | does not restart it before that |
| 75 | preempted, all work is saved | runs the same command again |
| 130 | interrupted from the keyboard | leaves that to the user |

A command that was killed (137, 143) also goes on when it is run again, from its last checkpoint.
"""

import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

from launch.errors import USERS_ERRORS, Failed, InputError


def parse_flags(
    argv: Sequence[str],
    text: str,
    define_flags: Callable[[flags.FlagValues], None],
    required: Sequence[str] = (),
) -> flags.FlagValues | None:
    """Reads the flags of a command that has no config.

    Args:
        argv: the program's name and its arguments.
        text: what `--help` prints before the flags.
        define_flags: defines them.
        required: names of those that have to be there.

    Returns:
        Their values; None if help was asked for, which is printed.

    Raises:
        InputError: an unknown flag, a value of the wrong type, an argument that is no flag, or a
            required flag is missing.
    """
    values = flags.FlagValues()
    define_flags(values)
    if helped(argv, text, values):
        return None
    read_flags(argv, values)
    for name in required:
        if not values[name].value:
            raise InputError(f"command line: --{name} is missing (--help lists the flags)")
    return values


def helped(
    argv: Sequence[str], text: str, values: flags.FlagValues, others: Sequence[str] = ()
) -> bool:
    """Prints help, if it is asked for; whether it is.

    Args:
        argv: the program's name and its arguments.
        text: stands before the flags.
        values: the flags.
        others: lines on flags that are not among them.
    """
    if not {"--help", "-h", "-help"} & set(argv[1:]):
        return False
    lines = (f"--{name}: {values[name].help}" for name in sorted(values))
    print(text.strip(), "", "flags:", *(f"  {line}" for line in (*others, *lines)), sep="\n")
    return True


def read_flags(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Fills flags from a command line.

    Raises:
        InputError: see `parse_flags`.
    """
    try:
        rest = values(list(argv))
    except flags.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"command line: {reason} (--help lists the flags)") from error
    if len(rest) > 1:
        raise InputError(f"command line: {rest[1]!r} is not a flag (--help lists the flags)")


def exit_code(command: Callable[[], None], interrupted: str) -> int:
    """Runs a command; errors that are not bugs become one line on stderr.

    Args:
        command: does the work.
        interrupted: what an interrupted user is told, such as how to go on.

    Returns:
        0 done, 2 wrong input (`InputError`) or a full disk, 130 interrupted, and for `Failed` the
        code it has: 1, or 75 when the same command is to be run again. The module's table says
        what a scheduler does then.
    """
    try:
        command()
    except InputError as error:
        return _end(2, f"error: {error}")
    except Failed as error:
        return _end(error.code, f"{error.word}: {error}")
    except KeyboardInterrupt:
        return _end(130, f"interrupted: {interrupted}")
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        location = f" at {error.filename}" if error.filename else ""
        reason = os.strerror(error.errno)
        return _end(2, f"error: cannot read or write{location}: {reason}; mend that, run it again")
    return 0


def _end(code: int, line: str) -> int:
    print(line, file=sys.stderr)
    return code
