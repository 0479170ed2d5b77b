"""How every command ends: one clear line for what the user can fix, and an exit code.

| code | meaning | what a scheduler does |
|---|---|---|
| 0 | done | continues |
| 1 | failed: a bug, or NaN or infinity in a network | does not restart: it would end the same way |
| 2 | wrong input or a full disk; the line says what to fix | does not restart until that is fixed |
| 75 | preempted with all work saved; or another process or the object store was lost | restarts |
| 130 | interrupted from the keyboard | leaves it to the user |

A command that was killed (137, 143) resumes from its last checkpoint when it is run again.
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

# Open files: a run of one small stage needs about 40, loaders of large sets a few hundred.
FEWEST_FILES, MANY_FILES = 48, 4096
FLAGS_TITLE = "every command"  # in --help
# A `~` that begins a value: after `=`, `:`, `,`, `+` or a quote.
_HOME = re.compile(r"(?<=[=:,+'\"])~(?=/|$)")


def parse_flags(
    argv: Sequence[str],
    text: str,
    define_flags: Callable[[flags.FlagValues], None],
    required: Sequence[str] = (),
) -> flags.FlagValues | None:
    """Reads the flags of a command that has no config; prints help and returns None if asked to.

    `text` is what `--help` prints before the flags. An unknown, mistyped or missing flag, or an
    argument that is not a flag, raises `InputError`.
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
    """Defines --coordinator for a command that cannot be shared by several processes."""
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
    """Prints help if the arguments ask for it; returns whether they do.

    `text` comes before the flags; `others` are lines on flags that absl does not know of.
    """
    if not {"--help", "-h", "-help"} & set(argv[1:]):
        return False
    lines = [text.strip(), "", "flags:", *(f"  {line}" for line in others)]
    groups = _groups(values)
    lines += [f"  {_described(flag)}" for flag in groups.pop("", ())]
    for title, group in sorted(groups.items()):
        lines += ["", f"{title}:", *(f"  {_described(flag)}" for flag in group)]
    # `head` and similar readers close the pipe once they have seen enough.
    with contextlib.suppress(BrokenPipeError):
        print(*lines, sep="\n")
    return True


def _groups(values: flags.FlagValues) -> dict[str, list[flags.Flag]]:
    """Flags sorted by name, grouped by the FLAGS_TITLE of the module that defines them or ''."""
    groups: dict[str, list[flags.Flag]] = {}
    for module, defined in values.flags_by_module_dict().items():
        title = getattr(sys.modules.get(module), "FLAGS_TITLE", "")
        groups.setdefault(title, []).extend(defined)
    return {title: sorted(group, key=lambda flag: flag.name) for title, group in groups.items()}


def _described(flag: flags.Flag) -> str:
    is_set = flag.default not in (None, "", [])
    default = (flag.default_as_str or "").strip("'") if is_set else "not set"
    text = " ".join(flag.help.split())
    # Some help texts describe a default themselves, such as one that depends on the machine.
    said = "" if "default" in text else f" (default: {default})"
    return f"--{flag.name}: {text}{said}"


def read_flags(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Parses a command line; a command for one process must not be started as one of several.

    `values` holds --coordinator, and --num_processes where several processes can share the work
    (`launch.runtime.devices.joining`). Raises `InputError` as `parse_flags` does.
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
    """Replaces `~` by the user's home after `=`, where shells leave it alone."""
    home = os.path.expanduser("~")
    return [_HOME.sub(lambda _: home, arg) for arg in argv]


def exit_code(command: Callable[[], None], interrupted: str) -> int:
    """Runs a command and returns its exit code; errors that are not bugs become one line on stderr.

    `interrupted` is what the line says after Ctrl-C, such as how to resume. The codes are those of
    the module's table; a bug raises.
    """
    # 1. Run it.
    _open_closed_streams()
    code, line = _outcome(command, interrupted)
    # 2. Output that nobody could read is an error, unless the reader closed the pipe by choice.
    unwritten = _flush(sys.stdout)
    if code == 0 and unwritten and not isinstance(unwritten, BrokenPipeError):
        code, line = 2, _cannot_print(unwritten)
    # 3. Say what was wrong.
    if line:
        # If stderr is broken too, the exit code still tells.
        with contextlib.suppress(OSError):
            say(line)
    _flush(sys.stderr)
    return code


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints one line, on stderr by default; unprintable characters, as of paths, are escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(line, file=stream or sys.stderr, flush=True)


def _outcome(command: Callable[[], None], interrupted: str) -> tuple[int, str]:
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
    """The ending for paths that etils or fsspec cannot open."""
    if isinstance(error, KeyError):
        # etils raises a bare KeyError for an unknown scheme: only its module tells its origin.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].startswith("etils.epath"):
            beginning = error.args[0]
            return 2, (
                f"error: no path that begins with {beginning} can be opened; use a local one"
            )
    # From fsspec. A config may hold such a path too, so this cannot be checked up front.
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return 2, 'error: paths at gs:// need more packages; pip install ".[gcs]" first'
    return None


def _cannot_print(error: OSError) -> str:
    return f"error: cannot write the output: {error.strerror}; fix that and run it again"


def _fails(stream: TextIO) -> bool:
    """Whether a stream accepts no more; an unbuffered one keeps no memory of a failed write."""
    if _flush(stream):
        return True
    with contextlib.suppress(OSError):  # Streams in memory have no file descriptor.
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _flush(stream: TextIO) -> OSError | None:
    """Flushes a stream; on failure returns the error and discards what was left."""
    try:
        stream.flush()
    except OSError as error:
        # Python flushes again at exit; it would print a traceback and exit with a code of its own.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


def _allow_open_files() -> None:
    """Raises the soft limit of open files to what the system allows, up to MANY_FILES.

    Raises `InputError` below FEWEST_FILES: saving would fail in the threads of libraries.
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
    """Opens /dev/null in place of standard streams that the caller has closed."""
    # Otherwise the next files to be opened would get descriptors 0 to 2, and whatever libraries
    # print would be written into them.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # Gets the lowest free descriptor: its own.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
