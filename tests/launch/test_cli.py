"""How commands end: standard streams that fail, errors of the system, what is printed."""

import errno
import os
import resource
import subprocess
import sys
from unittest import mock

import pytest
from etils import epath

from launch import cli
from launch.errors import InputError
from tests.support import ROOT

# Starts in a tenth of a second: no JAX. Its argument is what it does.
COMMAND = """
import os, select, sys
from absl import flags
from launch import cli

def draw():
    print("drawn\\n" * 100_000)

def word():
    print("drawn")

def last_word():
    reader = select.poll()
    reader.register(1, 0)
    reader.poll()  # until it is gone
    word()

def files():
    numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    assert min(numbers) > 2, numbers
    os.write(1, b"library\\n")
    os.write(2, b"library\\n")

def wrong():
    raise cli.InputError("wrong")

def helped():
    cli.helped(["x", "--help"], "Draws.\\n" * 100_000, flags.FlagValues())

sys.exit(cli.exit_code(globals()[sys.argv[1]], "go on"))
"""
PIPE = "error: cannot write the output: Broken pipe; fix that and run it again\n"
FULL = "error: cannot {}: No space left on device; fix that and run it again\n"
STREAMS = {
    "help that is read in part": ("helped | head -n 1", 0, ""),
    "output that is read in part": ("draw | head -n 1", 2, PIPE),
    "output that is read in part, unbuffered": ("-u draw | head -n 1", 2, PIPE),
    "the reader goes before the last word": ("last_word | true", 0, ""),
    "stdout is full": ("word > /dev/full", 2, FULL.format("write the output")),
    "stdout is full already midway": ("draw > /dev/full", 2, FULL.format("read or write")),
    "stderr is full": ("wrong 2> /dev/full", 2, ""),
    "all are closed": ("files <&- >&- 2>&-", 0, ""),
    "no stdout": ("draw >&-", 0, ""),
    "wrong input, no stderr": ("wrong 2>&-", 2, ""),
}


@pytest.mark.parametrize(("line", "code", "err"), STREAMS.values(), ids=STREAMS)
def test_standard_streams_that_take_nothing(tmp_path, line, code, err):
    (tmp_path / "command.py").write_text(COMMAND)
    flag, words = ("-u", line[3:]) if line.startswith("-u ") else ("", line)
    script = f"{sys.executable} {flag} {tmp_path}/command.py {words}; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.split("\n")[-2] == str(code)
    assert result.stderr == err


def named(number):
    return OSError(number, os.strerror(number), "/runs/a")


@pytest.mark.parametrize(
    "name",
    "EACCES EBUSY EEXIST EFBIG EINVAL EIO EISDIR ELOOP EMFILE EMLINK ENAMETOOLONG ENODEV ENOENT "
    "ENOSPC ENOTDIR ENOTEMPTY EPERM EROFS ESTALE ETXTBSY EXDEV".split(),
)
def test_errors_of_a_file_are_the_users(capsys, name):
    number = getattr(errno, name)
    assert cli.exit_code(mock.Mock(side_effect=named(number)), "") == 2
    disk = " (the disk at /)" if name == "ENOSPC" else ""
    reason = f"{os.strerror(number)}{disk}"
    said = f"error: cannot read or write at /runs/a: {reason}; fix that and run it again"
    assert capsys.readouterr().err == f"{said}\n"


def test_errors_that_name_two_files_or_an_object(capsys):
    moved = OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, b"/b")
    for error in (moved, FileNotFoundError("gs://bucket/a")):
        assert cli.exit_code(mock.Mock(side_effect=error), "") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: cannot read or write at /a and /b: Invalid cross-device")
    assert lines[1] == "error: cannot read or write: gs://bucket/a; fix that and run it again"


OURS = {
    "a closed descriptor": named(errno.EBADF),
    "a child": ChildProcessError(errno.ECHILD, "no child"),
    "a pipe of ours": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "a peer": ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    "a wrong call": OSError(errno.EINVAL, "Invalid argument"),
    "a library's own": OSError("cannot identify image"),
}


@pytest.mark.parametrize("error", OURS.values(), ids=OURS)
def test_errors_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        cli.exit_code(mock.Mock(side_effect=error), "")


def test_paths_of_unknown_stores(capsys):
    assert cli.exit_code(lambda: epath.Path("foo://x").exists(), "") == 2
    err = capsys.readouterr().err
    assert err == "error: no path that begins with foo:// can be opened; use a local one\n"
    with pytest.raises(KeyError):
        cli.exit_code(lambda: {}["a"], "")


@pytest.mark.parametrize(
    ("limits", "code", "soft"),
    [((24, 24), 2, None), ((24, 100), 0, 100), ((24, 10**6), 0, 4096), ((10**4, 10**6), 0, None)],
)
def test_few_open_files(monkeypatch, capsys, limits, code, soft):
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    changed = mock.Mock()
    monkeypatch.setattr(resource, "setrlimit", changed)
    assert cli.exit_code(lambda: None, "") == code
    assert [call.args[1][0] for call in changed.mock_calls] == ([soft] if soft else [])
    assert ("got 24; raise it" in capsys.readouterr().err) == bool(code)


def test_control_characters_are_not_printed_raw(capsys):
    name = "a\x1b[2Jb\rc\nd\x07e\u202ef\udcff ü"

    def wrong():
        raise InputError(f"{name}: no such file")

    def full():
        raise OSError(errno.EISDIR, "", name)

    for command in (wrong, full):
        assert cli.exit_code(command, "") == 2
        out, err = capsys.readouterr()
        assert out == "" and "a\\x1b[2Jb\\rc\\nd\\x07e\\u202ef\\udcff ü: " in err
        assert err.count("\n") == 1 and err[:-1].isprintable()
