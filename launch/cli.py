"""How every command ends: with one clear line for what the user can fix, and an exit code.

| code | means | a scheduler |
|---|---|---|
| 0 | done | goes on |
| 1 | failed: a bug, or NaN and infinity in a network | does not restart it, it would end so again |
| 2 | wrong input or a full disk: the line says what to fix | does not restart it before that |
| 75 | preempted, all work is saved; another process, or the object store, is lost | runs it again |
| 130 | interrupted from the keyboard | leaves that to the user |

A command that was killed (137, 143) also goes on when it is run again, from its last checkpoint.
"""

import contextlib
import os
import re
import resource
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

from absl import flags

from launch.cluster import check_alone
from launch.errors import InputError, outcome

# A run of one small stage opens about 40; loaders of large sets some hundred.
FEWEST_FILES, MANY_FILES = 48, 4096
FLAGS_TITLE = "every command"  # in --help
_HOME = re.compile(r"(?<=[=:,+'\"])~(?=/|$)")


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
    define_alone(values)
    if helped(argv, text, values):
        return None
    read_flags(argv, values)
    for name in required:
        if not values[name].value:
            raise InputError(f"command line: --{name} is missing (--help lists the flags)")
    return values


def define_alone(values: flags.FlagValues) -> None:
    """The flag --coordinator, for a command that does not say that several processes share it."""
    if "coordinator" not in values:
        flags.DEFINE_string(
            "coordinator",
            "",
            "'none' runs this process alone, whatever the cluster's variables say",
            flag_values=values,
        )


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
    lines = [text.strip(), "", "flags:", *(f"  {line}" for line in others)]
    groups = _groups(values)
    lines += [f"  {_described(flag)}" for flag in groups.pop("", ())]
    for title, group in sorted(groups.items()):
        lines += ["", f"{title}:", *(f"  {_described(flag)}" for flag in group)]
    # A reader such as `head` has seen enough when it closes the pipe.
    with contextlib.suppress(BrokenPipeError):
        print(*lines, sep="\n")
    return True


def _groups(values: flags.FlagValues) -> dict[str, list[flags.Flag]]:
    """Flags in order of their names, by FLAGS_TITLE of the module that defines them; '' is none."""
    groups: dict[str, list[flags.Flag]] = {}
    for module, defined in values.flags_by_module_dict().items():
        title = getattr(sys.modules.get(module), "FLAGS_TITLE", "")
        groups.setdefault(title, []).extend(defined)
    return {title: sorted(group, key=lambda flag: flag.name) for title, group in groups.items()}


def _described(flag: flags.Flag) -> str:
    """Name, help and default; a help that speaks of the default says it itself."""
    is_set = flag.default not in (None, "", [])
    default = (flag.default_as_str or "").strip("'") if is_set else "not set"
    text = " ".join(flag.help.split())
    said = "" if "default" in text else f" (default: {default})"
    return f"--{flag.name}: {text}{said}"


def read_flags(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Fills flags from a command line; one process of several is kept from what is one's work.

    Args:
        argv: the program's name and its arguments.
        values: the flags, with --coordinator; with --num_processes too where several can share
            the work (`launch.runtime.devices.joining`).

    Raises:
        InputError: see `parse_flags`; or this is one of several processes, and the command one's.
    """
    try:
        rest = values(expand_home(argv))
    except flags.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"command line: {reason} (--help lists the flags)") from error
    if len(rest) > 1:
        raise InputError(f"command line: {rest[1]!r} is not a flag (--help lists the flags)")
    if "num_processes" not in values:
        check_alone(os.environ, values.coordinator)


def expand_home(argv: Sequence[str]) -> list[str]:
    """Arguments with the user's home for `~`, which shells leave where it is behind a `=`."""
    home = os.path.expanduser("~")
    return [_HOME.sub(lambda _: home, arg) for arg in argv]


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
    _open_closed_streams()
    code, line = _outcome(command, interrupted)
    # A reader that closes its pipe after the work is done is no fault.
    unwritten = _flush(sys.stdout)
    if code == 0 and unwritten and not isinstance(unwritten, BrokenPipeError):
        code, line = 2, _cannot_print(unwritten)
    if line:
        # Who gives us no place to say what is wrong still gets the code.
        with contextlib.suppress(OSError):
            say(line)
    _flush(sys.stderr)
    return code


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints one line; what is no printable character in it, such as of a path, is escaped.

    Args:
        line: without its end.
        stream: where to; stderr by default.
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(line, file=stream or sys.stderr, flush=True)


def _outcome(command: Callable[[], None], interrupted: str) -> tuple[int, str]:
    """The exit code, and the line on stderr."""
    try:
        _allow_open_files()
        command()
    except KeyboardInterrupt:
        return 130, f"interrupted: {interrupted}"
    except Exception as error:
        ending = _stream_failure(error) or _path_failure(error) or outcome(error)
        if ending is None:
            raise
        return ending
    return 0, ""


def _stream_failure(error: Exception) -> tuple[int, str] | None:
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    return (2, _cannot_print(error)) if any(map(_fails, (sys.stdout, sys.stderr))) else None


def _path_failure(error: Exception) -> tuple[int, str] | None:
    """Of paths that nothing here can open."""
    if isinstance(error, KeyError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].startswith("etils.epath"):
            beginning = error.args[0]
            return 2, (
                f"error: no path that begins with {beginning} can be opened; name a local one"
            )
    # fsspec's; a path can stand in a config as well.
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return 2, 'error: paths at gs:// need more packages; pip install ".[gcs]" first'
    return None


def _cannot_print(error: OSError) -> str:
    return f"error: cannot write the output: {error.strerror}; fix that and run it again"


def _fails(stream: TextIO) -> bool:
    """Whether a stream takes no more; an unbuffered one forgets what it could not write."""
    if _flush(stream):
        return True
    with contextlib.suppress(OSError):  # A stream in memory has no number.
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _flush(stream: TextIO) -> OSError | None:
    """Writes what is left of a stream; where that fails, the error, and nothing is left."""
    try:
        stream.flush()
    except OSError as error:
        # Python would try once more at the very end, and say so in lines and a code of its own.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


def _allow_open_files() -> None:
    """Raises the limit of open files to what the system allows.

    Raises:
        InputError: that is too few: saving would fail in the threads of libraries.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = MANY_FILES if hard == unlimited else min(hard, MANY_FILES)
    if soft != unlimited and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < FEWEST_FILES:
        raise InputError(
            f"ulimit -n must be at least {FEWEST_FILES} open files, got {most}; raise it "
            "with ulimit -n"
        )


def _open_closed_streams() -> None:
    """Opens standard streams that the caller has closed, as if they led nowhere.

    The next files to be opened would get their numbers, and what libraries print would be written
    into them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # It gets the number itself, the lowest free one.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
