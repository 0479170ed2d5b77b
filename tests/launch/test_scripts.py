"""demo.sh and test.sh with stand-ins for Python, pip and df: nothing is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.support import ROOT

PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")

# Runs the scripts' own questions in the real Python; only says that it makes, installs and runs.
GOOD = f"""#!/bin/sh
case "$1 $2" in
"-m venv") rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>"$CALLS" ;;
"-m pip") echo "pip $*" >>"$CALLS"; eval "${{PIP:-:}}" ;;
"-m imagen_ft.demo" | "-m pytest") echo "$PWD" "${{PYTHONPATH-clean}}"; printf '[%s]' "$@" ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""
OLD = f"""#!/bin/sh
exec "{sys.executable}" -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])' "$2"
"""
BARE = f"""#!/bin/sh
exec "{sys.executable}" -c 'import sys; sys.modules["ensurepip"] = None; exec(sys.argv[1])' "$2"
"""
NO_VENV = GOOD.replace(
    '"-m venv")', '"-m venv") echo "Error: no room for the name"; exit 1 ;; unused)'
)
GIT = """#!/bin/sh
case "$2" in --is-shallow-repository) echo {} ;; --count) echo {} ;; esac
"""
DISK = """#!/bin/sh
printf '%s\\n' 'Filesystem 1024-blocks Used Available Capacity Mounted on' '/dev/a 9 9 {} 99% /'
"""


class Clone:
    """A clone of the repository with the programs that its scripts find on PATH."""

    def __init__(self, folder):
        self.root, self.bin, self.calls = folder / "a clone", folder / "bin", folder / "calls"
        self.elsewhere = folder / "elsewhere"
        for made in (self.root / "launch", self.bin, self.elsewhere):
            made.mkdir(parents=True)
        for name in ("demo.sh", "test.sh", "environment.sh"):
            shutil.copy(ROOT / "launch" / name, self.root / "launch")
        shutil.copy(ROOT / "setup.py", self.root)
        for name in PYTHONS:
            self.program(name, GOOD)
        self.program("df", DISK.format(10_000_000))
        self.env = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "PYTHONPATH": str(self.elsewhere),
        }
        self.env.pop("PYTHON", None)

    def program(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, script, *arguments, **env):
        return subprocess.Popen(
            ["sh", self.root / "launch" / script, *arguments],
            cwd=self.elsewhere,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script, *arguments, **env):
        """Returns the exit code, what the started module printed, and stderr."""
        with self.start(script, *arguments, **env) as process:
            out, err = process.communicate(timeout=60)
        told = [line for line in out.splitlines() if not line.startswith(f"launch/{script}: ")]
        return process.returncode, told, err

    def called(self):
        """What was made since the last question: "venv" and the targets of pip."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [line.split()[-1] for line in lines]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
@pytest.mark.parametrize(
    ("programs", "env", "said"),
    [
        (dict.fromkeys(PYTHONS, OLD), {}, "Python 3.11 or newer is needed, but python3 is 3.9.2"),
        (dict.fromkeys(PYTHONS, "#!/bin/sh\nexit 127\n"), {}, "python3 cannot be run; install it"),
        ({"old": OLD}, {"PYTHON": "old"}, "but old is 3.9.2"),
        ({}, {"PYTHON": "/none/python"}, "/none/python cannot be run"),
        (dict.fromkeys(PYTHONS, BARE), {}, "python3.13 lacks its venv module; install it"),
        ({"df": DISK.format(1024)}, {}, "has 1 MiB free"),
    ],
)
def test_unfit_machine_gets_one_line_before_anything_is_made(clone, script, programs, env, said):
    for name, text in programs.items():
        clone.program(name, text)
    code, told, err = clone.run(script, **env)
    assert (code, told, clone.called()) == (2, [], [])
    assert err.startswith(f"launch/{script}: ") and said in err
    assert err.count("\n") == 1 and err.endswith("\n")
    assert not (clone.root / ".venv").exists()


def test_failed_installation_gives_the_last_error_of_its_log(clone):
    pip = "echo Collecting jax; echo 'ERROR: No matching distribution for jax' >&2; exit 1"
    code, told, err = clone.run("demo.sh", PIP=pip)
    assert (code, told) == (2, [])
    log = clone.root / ".cache" / "install.log"
    reason = "installation failed: ERROR: No matching distribution for jax"
    assert err == f"launch/demo.sh: {reason} (log: {log})\n"
    assert "Collecting jax" in log.read_text()


def test_failed_venv_gives_one_line(clone):
    clone.program("python3.13", NO_VENV)
    code, told, err = clone.run("demo.sh")
    assert (code, told) == (2, [])
    assert "python3.13 -m venv failed: Error: no room for the name" in err
    assert err.count("\n") == 1


def test_unwritable_clone_gives_one_line(clone):
    (clone.root / ".cache").touch()
    code, told, err = clone.run("demo.sh")
    assert (code, told, clone.called()) == (2, [], [])
    assert "cannot write" in err and err.count("\n") == 1


def test_the_first_python_that_is_fit_is_taken(clone):
    for name, text in (("python3.13", "#!/bin/sh\nexit 127\n"), ("python3.12", BARE)):
        clone.program(name, text)
    with clone.start("demo.sh") as process:
        out, _ = process.communicate(timeout=60)
    assert "making .venv with python3.11 (" in out


def test_installs_once_and_runs_in_the_repository(clone):
    code, told, err = clone.run("demo.sh", "--a=b c", "d")
    assert (code, told, err) == (0, [f"{clone.root} clean", "[-m][imagen_ft.demo][--a=b c][d]"], "")
    assert clone.called() == ["venv", "."]
    assert clone.run("demo.sh")[0] == 0
    assert clone.called() == []


def test_the_test_extra_is_added_and_serves_the_demo(clone):
    clone.run("demo.sh")
    clone.called()
    clone.run("test.sh")
    assert clone.called() == [".[test]"]
    clone.run("demo.sh")
    clone.run("test.sh")
    assert clone.called() == []


def test_a_changed_setup_is_installed(clone):
    clone.run("test.sh")
    clone.called()
    with (clone.root / "setup.py").open("a") as file:
        file.write("# changed\n")
    clone.run("demo.sh")
    assert clone.called() == ["."]
    clone.run("test.sh")
    assert clone.called() == [".[test]"]


def test_a_moved_clone_is_made_anew(clone):
    clone.run("demo.sh")
    clone.called()
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    assert clone.run("demo.sh")[1][0] == f"{clone.root} clean"
    assert clone.called() == ["venv", "."]


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        # The last one counts.
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0"),
    ],
)
def test_memory_comes_in_large_pages_unless_the_caller_says_otherwise(clone, script, own, given):
    shown = """) echo "$GLIBC_TUNABLES";"""
    for name in PYTHONS:
        clone.program(name, GOOD.replace(""") echo "$PWD" "${PYTHONPATH-clean}";""", shown))
    assert clone.run(script, GLIBC_TUNABLES=own)[1][0] == given


def test_a_full_disk_stops_an_installed_clone_too(clone):
    clone.run("demo.sh")
    clone.program("df", DISK.format(1024))
    code, told, err = clone.run("demo.sh")
    assert (code, told) == (2, []) and "has 1 MiB free, 200 MiB are needed" in err


def interrupt(clone, number):
    """Starts test.sh and sends the signal to its whole group while pip is at work."""
    with clone.start("test.sh", PIP="sleep 60") as process:
        deadline = time.monotonic() + 30
        while not (clone.calls.exists() and "pip" in clone.calls.read_text()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_ctrl_c_ends_cleanly_and_the_installation_is_repeated(clone):
    code, err = interrupt(clone, signal.SIGINT)
    assert code == 130
    assert err == "launch/test.sh: interrupted; the same command starts again\n"
    clone.called()
    assert clone.run("test.sh")[0] == 0
    assert clone.called() == ["venv", ".[test]"]


def test_a_killed_update_is_repeated_from_the_start(clone):
    clone.run("demo.sh")
    clone.called()
    assert interrupt(clone, signal.SIGKILL)[0] == -signal.SIGKILL
    clone.called()
    assert clone.run("test.sh")[0] == 0
    assert clone.called() == ["venv", ".[test]"]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], "[-m][pytest][-m][not slow]"),
        (["tests/launch", "-k", "a or b"], "[-m][pytest][-m][not slow][tests/launch][-k][a or b]"),
        (["-x", "--all"], "[-m][pytest][-x]"),
        (["--slice=6/6", "-x"], "[-m][pytest][--slice=6/6][-x]"),
    ],
)
def test_long_proofs_are_run_when_asked_for(clone, arguments, given):
    assert clone.run("test.sh", *arguments)[1][1:] == [given]


@pytest.mark.parametrize("argument", ["--slice=0/6", "--slice=7/6", "--slice=1/5", "--slice"])
def test_a_wrong_slice_gets_one_line_before_anything_is_made(clone, argument):
    code, told, err = clone.run("test.sh", argument)
    assert (code, told, clone.called()) == (2, [], [])
    assert err == f"launch/test.sh: --slice=K/6 with K from 1 to 6 is needed, got {argument}\n"


@pytest.mark.parametrize(
    ("git", "arguments", "given", "reason"),
    [
        (GIT.format("false", 12), [], "[--slice=1/6]", "commit 12"),
        (GIT.format("false", 17), [], "[--slice=6/6]", "commit 17"),
        (GIT.format("true", 1), [], "[--slice=4/6]", "day 21, as the history is not here"),
        ("#!/bin/sh\nexit 127\n", [], "[--slice=4/6]", "day 21, as the history is not here"),
        (GIT.format("false", 12), ["--all"], "", None),
    ],
)
def test_ci_takes_another_slice_for_each_commit(clone, git, arguments, given, reason):
    clone.program("git", git)
    clone.program("date", f"#!/bin/sh\necho {21 * 86400 + 5}\n")
    (clone.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", clone.root / ".ci")
    command = [clone.root / ".ci" / "run", *arguments]
    out = subprocess.run(command, env=clone.env, capture_output=True, text=True, check=True).stdout
    said = f".ci/run: {given[1:-1]} of the slow proofs ({reason})"
    assert (said in out.splitlines()) == (reason is not None)
    assert out.endswith(f"[-m][pytest]{given}")
