"""Steps that wait for each other, with small modules in place of the tasks."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.errors import InputError, Preempted
from launch.files import read_json
from launch.jobs import job
from launch.jobs.runner import PYTHON, Job, JobFailed, JobRunner
from tests.support import ROOT

# python -m work OUTPUT [file to wait for]: notes when it begins and ends, and makes its output.
WORK = """
import os, pathlib, sys, time

output, *awaited = map(pathlib.Path, sys.argv[1:])


def note(what):
    with open(output.parent / "events", "a") as file:
        file.write(f"{what} {output.name}\\n")


note("begin")
output.with_suffix(".pid").write_text(str(os.getpid()))
deadline = time.monotonic() + 30
while not all(path.exists() for path in awaited):
    assert time.monotonic() < deadline
    time.sleep(0.005)
print(f"made {output.name} of", os.environ.get("MATERIAL"))
output.touch()
note("end")
"""
# python -m stay OUTPUT: works until SIGTERM comes, saves, and says so.
STAY = """
import pathlib, signal, sys, time


def leave(number, frame):
    pathlib.Path(sys.argv[1]).with_suffix(".saved").touch()
    print("preempted: it is saved")
    sys.exit(75)


signal.signal(signal.SIGTERM, leave)
pathlib.Path(sys.argv[1]).with_suffix(".pid").write_text("here")
time.sleep(60)
"""
# Starts what it is given as a child of its own, as a job system does, and notes what it was told.
LAUNCHER = """#!/bin/sh
echo "$1 $2" >>"$TOLD"
shift 2
"$@"
"""
# python -m fail CODE [file to wait for]: fails, as soon as the file has something in it.
FAIL = """
import os, sys, time

while not all(os.path.exists(path) and os.path.getsize(path) for path in sys.argv[2:]):
    time.sleep(0.005)
print("all is well", flush=True)
print("10%|\\r20%|\\rerror: no disk, no glory\\n\\n", end="", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


class Site:
    """A work directory, and the modules to work with."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "run"
        (folder / "work.py").write_text(WORK)
        (folder / "fail.py").write_text(FAIL)
        (folder / "stay.py").write_text(STAY)
        self.env = {"PYTHONPATH": str(folder), "MATERIAL": "clay"}

    def step(self, name, *after, waits_for=()):
        """A step of the module `work`; its input is the module's file."""
        command = ("work", *(str(self.folder / file) for file in (name, *waits_for)))
        return Job(name, command, (self.folder / "work.py",), self.folder / name, after)

    def stay(self, name):
        """A step of the module `stay`."""
        return Job(name, ("stay", str(self.folder / name)), (), self.folder / name)

    def launcher(self):
        """What a launcher is told, and the file that notes it."""
        path, told = self.folder / "launcher", self.folder / "told"
        path.write_text(LAUNCHER)
        path.chmod(0o755)
        self.env["TOLD"] = str(told)
        return (str(path), "lane={lane}", "job-{step}", *PYTHON), told

    def road(self, *steps, lanes=1, launcher=PYTHON):
        return JobRunner(self.workdir, steps, lanes, self.env, launcher)

    def run(self, *steps, lanes=1):
        """Returns what was begun and ended, in order."""
        (self.folder / "events").unlink(missing_ok=True)
        self.road(*steps, lanes=lanes).run()
        return self.events()

    def events(self):
        path = self.folder / "events"
        return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_steps_come_after_what_they_need(site, capfd):
    steps = [site.step("c", "b"), site.step("b", "a"), site.step("a")]
    road = site.road(*steps)
    road.run()
    assert site.events() == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert [line.split(" in ")[0] for line in shown.err.splitlines()] == [
        "a: done",
        "b: done",
        "c: done",
    ]
    marks = road.marks()
    assert marks["a"]["run_with"]["command"] == list(steps[2].command)
    assert marks["a"]["ended"] < marks["b"]["ended"] < marks["c"]["ended"] <= time.time()
    for mark in marks.values():
        assert 0 < mark["seconds"] < 30 and mark["peak_memory_bytes"] > 2**22
    assert (site.workdir / "logs" / "b.log").read_text() == "made b of clay\n"


def test_two_lanes_work_at_the_same_time(site):
    # Each waits for the other to have begun.
    steps = [site.step("a", waits_for=["b.pid"]), site.step("b", waits_for=["a.pid"])]
    events = site.run(*steps, lanes=2)
    assert set(events[:2]) == {"begin a", "begin b"}


def test_one_lane_takes_one_at_a_time(site):
    events = site.run(site.step("a"), site.step("b"), site.step("c"))
    assert events == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]


def test_what_is_complete_is_not_done_again(site, capfd):
    steps = [site.step("a"), site.step("b", "a")]
    site.run(*steps)
    first = site.road(*steps).marks()
    capfd.readouterr()
    assert site.run(*steps) == [] and site.road(*steps).marks() == first
    assert capfd.readouterr().err.splitlines() == ["a: already complete", "b: already complete"]


@pytest.mark.parametrize(("gone", "again"), [("a", "ab"), ("b", "b"), ("c", "c")])
def test_what_is_gone_is_done_again_and_what_was_made_of_it(site, gone, again):
    steps = [site.step("a"), site.step("b", "a"), site.step("c")]
    site.run(*steps)
    (site.folder / gone).unlink()
    events = site.run(*steps)
    assert events == [f"{what} {name}" for name in again for what in ("begin", "end")]
    assert site.run(*steps) == []


def test_what_was_made_of_something_older_is_done_again(site):
    steps = [site.step("a"), site.step("b", "a")]
    site.run(*steps)
    # As if the road had been killed between the second making of a and of b.
    (site.folder / "a").unlink()
    site.run(steps[0])
    assert site.run(*steps) == ["begin b", "end b"]


def test_time_adds_up_over_runs(site):
    road = site.road(site.step("a"))
    assert road.wall_seconds() == 0
    road.run()
    road.tick()
    first, spent = road.wall_seconds(), road.marks()["a"]["seconds"]
    assert spent <= first < 60
    assert read_json(site.workdir / "clock.json") == {"seconds": first}
    road.tick(every=60.0)
    assert road.wall_seconds() == first

    road = site.road(site.step("a"), site.step("b"))
    assert road.wall_seconds() == first
    road.run()
    road.tick()
    assert road.wall_seconds() >= first + road.marks()["b"]["seconds"]


@pytest.mark.parametrize(("code", "ours"), [(2, 2), (75, 75), (1, 1), (7, 1)])
def test_a_step_that_fails(site, code, ours):
    command = ("fail", str(code), str(site.folder / "slow.pid"))
    bad = Job("bad", command, (), site.folder / "bad")
    slow = site.step("slow", waits_for=["never"])
    with pytest.raises(JobFailed) as error:
        site.run(slow, bad, site.step("later", "bad"), lanes=2)
    log = site.workdir / "logs" / "bad.log"
    assert str(error.value) == f"bad: no disk, no glory (exit code {code}, log: {log})"
    assert error.value.code == ours
    assert log.read_text().startswith("all is well\n10%|")
    # The other one was ended, and neither has a mark.
    assert is_gone(int((site.folder / "slow.pid").read_text()))
    assert not (site.workdir / "steps").exists()
    assert not (site.folder / "later.pid").exists()


def test_a_step_that_is_killed(site):
    (site.folder / "killed.py").write_text(
        "import os\nprint('busy', flush=True)\nos.kill(os.getpid(), 9)"
    )
    with pytest.raises(JobFailed, match=r"^killed: busy \(killed by signal 9, log: ") as error:
        site.run(Job("killed", ("killed",), (), site.folder / "killed"))
    assert error.value.code == 1


def test_a_step_that_ends_in_a_traceback(site):
    (site.folder / "broken.py").write_text(
        "error = RuntimeError('no memory')\nerror.add_note('a note of a library')\nraise error"
    )
    with pytest.raises(JobFailed, match=r"RuntimeError: no memory \| a note of a library \(exit"):
        site.run(Job("broken", ("broken",), (), site.folder / "broken"))


def test_after_a_failure_what_it_was_made_of_is_looked_at_again(site):
    bad = Job("bad", ("fail", "1"), (), site.folder / "bad", ("a",))
    with pytest.raises(JobFailed):
        site.run(site.step("a"), bad, site.step("b"))
    assert site.run(site.step("a"), site.step("b")) == ["begin a", "end a", "begin b", "end b"]


def test_preempted_steps_end_the_road_as_preempted(site):
    (site.folder / "gone.py").write_text("import sys\nprint('preempted: saved')\nsys.exit(75)")
    with pytest.raises(JobFailed) as error:
        site.run(Job("gone", ("gone",), (), site.folder / "gone"))
    assert (error.value.code, error.value.word) == (75, "preempted")
    assert str(error.value).startswith("gone: saved (exit code 75, ")


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (signal.SIGTERM, Preempted, "SIGTERM: every step was asked to save"),
        (signal.SIGINT, KeyboardInterrupt, None),
    ],
)
def test_who_stops_the_road_lets_its_steps_save(site, launched, number, error, said):
    launcher = site.launcher()[0] if launched else PYTHON
    road = site.road(site.stay("a"), site.stay("b"), lanes=2, launcher=launcher)
    before = signal.getsignal(signal.SIGTERM)
    both = [site.folder / f"{name}.pid" for name in "ab"]

    def call():
        wait_until(lambda: all(path.exists() for path in both))
        os.kill(os.getpid(), number)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        called = pool.submit(call)
        with pytest.raises(error, match=said):
            road.run()
        called.result()
    wait_until(lambda: all(path.with_suffix(".saved").exists() for path in both))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (site.workdir / "steps").exists()


def test_a_failure_lets_the_others_save(site):
    bad = Job("bad", ("fail", "1", str(site.folder / "a.pid")), (), site.folder / "bad")
    with pytest.raises(JobFailed, match=r"^bad: "):
        site.run(site.stay("a"), bad, lanes=2)
    assert (site.folder / "a.saved").exists()


def test_steps_are_started_by_a_launcher(site):
    launcher, told = site.launcher()
    steps = [site.step("a", waits_for=["b.pid"]), site.step("b", waits_for=["a.pid"])]
    site.road(*steps, lanes=2, launcher=launcher).run()
    assert sorted(told.read_text().splitlines()) == ["lane=0 job-a", "lane=1 job-b"]
    # Who starts them changes nothing in what they make.
    assert site.run(*steps) == []


def test_a_launcher_that_does_not_wait(site, monkeypatch):
    monkeypatch.setattr(job, "_GRACE", 0.3)
    lazy = site.folder / "lazy"
    lazy.write_text("#!/bin/sh\necho submitted\n")
    lazy.chmod(0o755)
    with pytest.raises(JobFailed) as error:
        site.road(site.step("a"), launcher=(str(lazy), *PYTHON)).run()
    assert f"a: exited with 0, but {site.folder / 'a'} is missing; the launcher must" in str(
        error.value
    )
    assert error.value.code == 1 and not (site.workdir / "steps").exists()


def test_a_network_file_system_may_be_late(site):
    (site.folder / "late.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen(['sh', '-c', 'sleep 0.5; touch \"$0\"', sys.argv[1]],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
    )
    site.run(Job("late", ("late", str(site.folder / "made")), (), site.folder / "made"))
    assert site.road(site.step("late")).marks()["late"]["seconds"] > 0


@pytest.mark.parametrize("file", ["clock.json", "steps/a.json"])
def test_notes_of_another_kind(site, file):
    site.road(site.step("a")).run()
    site.road(site.step("a")).tick()
    (path,) = site.workdir.rglob(file.rpartition("/")[2])
    path.write_text("{}")
    with pytest.raises(InputError, match=rf"{path} has no valid '"):
        site.road(site.step("a")).run()


def test_another_digest_runs_the_step_again(site):
    first, second = (dataclasses.replace(site.step("a"), digest=d) for d in ("one", "two"))
    assert site.run(first) == ["begin a", "end a"] and site.run(first) == []
    assert site.run(second) == ["begin a", "end a"] and site.run(second) == []


def test_another_command_or_input_runs_the_step_again(site):
    a, b, c = site.step("a"), site.step("b", "a"), site.step("c")
    site.run(a, b, c)
    changed = site.step("a", waits_for=["a.pid"])
    everything = ["begin a", "end a", "begin b", "end b"]
    assert site.run(changed, b, c) == everything
    assert site.run(changed, b, c) == []
    with (site.folder / "work.py").open("a") as file:
        file.write("# changed\n")
    assert site.run(changed, b, c) == [*everything, "begin c", "end c"]


def is_gone(pid):
    """Ended; nobody may have asked for its exit code yet."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def wait_until(happened):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_road_takes_its_steps_along(site):
    steps = [site.step("a"), site.step("b", "a", waits_for=["go"]), site.step("c", "b")]
    road = (
        "import sys, json; from pathlib import Path\n"
        "from launch.jobs.runner import Job, JobRunner\n"
        "workdir, steps, env = json.loads(sys.argv[1])\n"
        "steps = [Job(n, tuple(c), tuple(map(Path, i)), Path(o), tuple(a))"
        " for n, c, i, o, a in steps]\n"
        "JobRunner(Path(workdir), steps, 2, env).run()\n"
    )
    told = [
        [s.name, s.command, [str(path) for path in s.inputs], str(s.output), s.after] for s in steps
    ]
    argument = json.dumps([str(site.workdir), told, site.env])
    with subprocess.Popen([sys.executable, "-c", road, argument], cwd=ROOT) as process:
        wait_until(lambda: (site.folder / "b.pid").exists())
        wait_until(lambda: (site.folder / "b.pid").read_text())
        pid = int((site.folder / "b.pid").read_text())
        assert not is_gone(pid)
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    assert sorted(path.name for path in (site.workdir / "steps").iterdir()) == ["a.json"]

    (site.folder / "go").touch()
    assert site.run(*steps, lanes=2) == ["begin b", "end b", "begin c", "end c"]
