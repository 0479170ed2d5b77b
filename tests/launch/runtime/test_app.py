"""What a command line leads to: the task with its config, or one line and an exit code."""

import errno

import jax
import pytest
from absl import flags
from etils import epath

from launch.errors import Diverged, InputError
from launch.runtime import app

CONFIG = """
from ml_collections import ConfigDict


def get_config(arg=""):
    if arg not in ("", "runlocal"):
        raise ValueError(f"there is no argument {arg!r}")
    steps = 3 if arg else 30
    return ConfigDict(dict(steps=steps, rate=0.1, name="a", sizes=(1, 2), model=dict(width=4)))
"""


def define_flags(values):
    flags.DEFINE_integer("number", 1, "how many to draw", flag_values=values)


class Task:
    """Keeps what it is called with, then fails as told."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def __call__(self, arguments):
        self.calls.append(arguments)
        if self.error:
            raise self.error

    def run(self, *argv):
        """The exit code."""
        with pytest.raises(SystemExit) as ended:
            app.run(self, "Draws things.\n\nIn two ways.", define_flags, argv=["task", *argv])
        return ended.value.code


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return str(path)


BAD = {
    "unknown field": (["--config.stepz=3"], "--config.stepz=3: the config has no field 'stepz'"),
    "unknown field below": (
        ["--config.model.depth=3"],
        "--config.model.depth=3: the config has no field 'depth'",
    ),
    "field below a value": (
        ["--config.steps.first=3"],
        "--config.steps.first=3: the config has no field 'first'",
    ),
    "unknown flag": (["--wrkdir=x"], "'wrkdir'"),
    "text for an integer": (["--config.steps=many"], "config.steps"),
    "fraction for an integer": (["--config.steps=1.5"], "config.steps"),
    "text for a number": (["--config.rate=fast"], "config.rate"),
    "value for a group": (["--config.model=3"], "config.model"),
    "text for a flag's integer": (["--number=many"], "--number"),
    "text for a flag's boolean": (["--dry_run=perhaps"], "--dry_run"),
    "stray argument": (["--number=2", "more"], "'more' is not a flag"),
    "second config": (["--config=other.py"], "--config must be given once"),
    "work directory without a name": (["--workdir="], "--workdir is missing"),
}


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


@pytest.mark.parametrize(("argv", "said"), BAD.values(), ids=BAD)
def test_wrong_command_line(config, tmp_path, capsys, argv, said):
    task = Task()
    assert task.run(f"--config={config}", f"--workdir={tmp_path / 'run'}", *argv) == 2
    assert task.calls == [] and not (tmp_path / "run").exists()
    assert said in one_line(capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--workdir=run"], "--config must be given once, got"),
        (["--config=none.py", "--workdir=run"], "--config=none.py: no such file: none.py"),
        (["--config={parts}", "--workdir=run"], "parts.py has no get_config; use a config file"),
        (["--config={config}:fast", "--workdir=run"], ":fast: ValueError: there is no argument"),
        (
            ["--config=a:b/c.py", "--workdir=run"],
            "no such file: a; what follows a ':' is an argument",
        ),
        (["--config={config}"], "--workdir is missing; pass the run directory"),
        (["--config={config}:runlocal", "--number=2"], "--workdir is missing"),
        (["--config={config}", "--workdir=run", "--all_tensors"], "--all_tensors needs --dry_run"),
    ],
    ids=[
        "no config",
        "no file",
        "only parts",
        "wrong argument",
        "colon in a path",
        "no workdir",
        "no workdir but a flag",
        "no dry run",
    ],
)
def test_something_is_missing(config, tmp_path, capsys, argv, said):
    task, parts = Task(), tmp_path / "parts.py"
    parts.write_text("WIDTH = 4\n")
    assert task.run(*[arg.format(config=config, parts=parts) for arg in argv]) == 2
    assert task.calls == []
    assert said in one_line(capsys)


# What a config file holds, and what is said of it; {} is its path.
BAD_CONFIGS = {
    "syntax": ("def get_config():\n  return (\n", "{}, line 2: '(' was never closed"),
    "no text": ("# get_config\n\0", "source code string cannot contain null bytes"),
    "import": (
        "import gone.away  # get_config",
        "ModuleNotFoundError: No module named 'gone' ({}, line 1)",
    ),
    "end": ("import sys; sys.exit(0)  # get_config", "SystemExit: 0 ({}, line 1)"),
    "end in get_config": ("def get_config():\n  raise SystemExit", "SystemExit ({}, line 2)"),
    "error": ("def get_config():\n\n  return 1 / 0", "division by zero ({}, line 3)"),
    "error of many lines": (
        "def get_config():\n  raise RuntimeError('a\\nb')",
        "RuntimeError: a b ({}, line 2)",
    ),
    "error below": ("import json\ndef get_config():\n  json.loads('{')", "({}, line 3)"),
    "recursion": ("def get_config():\n  get_config()", "recursion depth exceeded ({}, line 2)"),
    "nothing": ("def get_config(): pass", "get_config must return a ConfigDict, got NoneType"),
    "dict": ("def get_config(): return dict(a=1)", "get_config must return a ConfigDict, got dict"),
    "no function": ("get_config = 3", "TypeError: 'int' object is not callable"),
    "name elsewhere": ("# get_config", "AttributeError: module 'experiment' has no attribute"),
}


@pytest.mark.parametrize(("text", "said"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_config_files_that_are_none(tmp_path, capsys, text, said):
    task, path = Task(), tmp_path / "bad.py"
    path.write_text(text)
    assert task.run(f"--config={path}", f"--workdir={tmp_path / 'run'}") == 2
    assert task.calls == [] and not (tmp_path / "run").exists()
    err = one_line(capsys)
    assert err.startswith(f"error: --config={path}: ") and said.format(path) in err


def test_config_that_takes_no_arguments(tmp_path, capsys):
    (tmp_path / "config.py").write_text("def get_config(): pass")
    assert Task().run(f"--config={tmp_path / 'config.py'}:k=1", "--workdir=x") == 2
    assert "TypeError: get_config() takes 0 positional arguments" in one_line(capsys)


def test_overrides_arrive(config, tmp_path):
    task = Task()
    code = task.run(
        f"--config={config}:runlocal",
        "--config.rate=2",
        "--config.model.width=8",
        "--config.sizes=(3, 4)",
        "--config.name=b c",
        f"--workdir={tmp_path}",
        "--number=5",
    )
    assert code == 0
    (arguments,) = task.calls
    assert arguments.config.to_dict() == dict(
        steps=3, rate=2.0, name="b c", sizes=(3, 4), model=dict(width=8)
    )
    assert arguments.workdir == epath.Path(tmp_path)
    assert not arguments.dry_run and arguments.flags.number == 5
    with pytest.raises(AttributeError):
        arguments.config.stepz = 3


def test_dry_run_needs_no_work_directory(config):
    task = Task()
    assert task.run(f"--config={config}", "--dry_run") == 0
    assert task.calls[0].dry_run and task.calls[0].folder is None


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--config=none.py", "--help"]])
def test_help(capsys, argv):
    task = Task()
    assert task.run(*argv) == 0
    out, err = capsys.readouterr()
    assert task.calls == [] and err == ""
    assert out.startswith("Draws things.\n\nIn two ways.\n\nflags:\n")
    for line in ("--number: how many to draw", "--workdir: run directory", "--config=FILE.py"):
        assert f"\n  {line}" in out


FAILURES = {
    "wrong input": (InputError("shard 3 is cut off"), 2, "error: shard 3 is cut off\n"),
    "diverged": (
        Diverged("the loss of step 7 is nan"),
        1,
        "error: the loss of step 7 is nan\n",
    ),
    "interrupted": (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "/runs/a"),
        2,
        "error: cannot read or write at /runs/a: No space left on device (the disk at /); ",
    ),
    "no quota, no name": (
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        2,
        "error: cannot read or write: Disk quota exceeded; ",
    ),
}


@pytest.mark.parametrize(("error", "code", "said"), FAILURES.values(), ids=FAILURES)
def test_how_a_task_ends(config, tmp_path, capsys, error, code, said):
    assert Task(error).run(f"--config={config}", f"--workdir={tmp_path}") == code
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_an_error_of_the_program_keeps_its_traceback(config, tmp_path):
    for error in (ValueError("ours"), ConnectionResetError(errno.ECONNRESET, "gone")):
        with pytest.raises(type(error)):
            app.run(Task(error), "", argv=["task", f"--config={config}", f"--workdir={tmp_path}"])


def test_a_work_directory_below_a_file(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "run"
    with pytest.raises(SystemExit) as ended:
        app.run(
            lambda args: args.workdir.mkdir(parents=True),
            "",
            argv=["task", f"--config={config}", f"--workdir={below}"],
        )
    assert ended.value.code == 2
    assert f"cannot read or write at {below}: Not a directory" in one_line(capsys)


def test_describe_counts(config, capsys):
    net = {"dense": {"kernel": jax.ShapeDtypeStruct((3, 4), "float32")}}

    def dry_run(*flags):
        argv = ["task", f"--config={config}", "--dry_run", *flags]
        app.describe(app.parse(argv), net=net)
        out = capsys.readouterr().out
        assert '"width": 4' in out and out.endswith("net: 12 parameters\n")
        return out

    assert "kernel" not in dry_run() and "dense/kernel" in dry_run("--all_tensors")
