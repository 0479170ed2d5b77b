"""What every mode refuses before anything is started, and what it does with names and records."""

import json
import os
import subprocess

import pytest

from launch.errors import InputError
from launch.submit import __main__ as submit
from launch.submit.checkout import Checkout, find_checkout
from launch.submit.mode import Mode, check_processes, check_workdir, job_name
from launch.submit.plan import Command, Plan, TextFile, run
from launch.submit.task import Task
from tests.support import ROOT

TASK = ("--", "python", "-m", "imagen_ft.finetune", "--config=c.py", "--workdir=runs/Base 64")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere", *TASK], "MODE must be one of local, "),
        (["local"], "after -- must come python -m TASK"),
        (["local", "--", "sh", "x.sh"], r"after -- must come python -m TASK ..., got sh x\.sh"),
        (["local", "--", "python", "-m", "imagen_ft.nothing"], "no module 'imagen_ft.nothing'"),
        (["local", "--", "python", "-m", "no.such"], r"no module 'no\.such'"),
        (["local", "--name=Big_Job", *TASK], r"--name must be .*got Big_Job"),
        (["local", "--env=NOT_SET_ANYWHERE", *TASK], "this variable is not set here"),
        (
            ["local", "--env=TOKEN=abc", *TASK],
            "--env must be the name of a variable without its value, got TOKEN=",
        ),
        (["local", "--env=LINES_OF_IT", *TASK], "its value must be one line"),
        (["local", "--processes=0", *TASK], "--processes must be at least 1, got 0"),
        (["local", "--workers=-1", *TASK], "--workers must be at least 0, got -1"),
        (["local", "--restarts=-1", *TASK], "--restarts must be at least 0, got -1"),
        (["local", "--processes=2", "--workers=2", *TASK], "pass only one of them"),
        (["local", "--devices=gpu", *TASK], "needs a GPU on this machine"),
        (["local", "--check=preflight", *TASK], "needs a job with TPUs"),
        (["local", "--unknown", *TASK], "command line: Unknown command line flag"),
        (["status"], "give one job"),
        (["status", "a", "b"], "give one job"),
        (["logs", "nobody"], "no job 'nobody' was started from here"),
    ],
)
def test_refused(job, monkeypatch, tmp_path, argv, said):
    monkeypatch.setenv("LINES_OF_IT", "one\ntwo")
    with pytest.raises(InputError, match=said):
        job(*argv)
    assert not list(tmp_path.iterdir())


def test_changes_in_no_commit(job, monkeypatch):
    dirty = Checkout(ROOT, "0" * 40, is_dirty=True)
    monkeypatch.setattr(submit, "find_checkout", lambda is_needed: dirty)
    assert job("local", "--dry_run", *TASK) == 0
    monkeypatch.setattr(submit.MODES["local"], "starts_later", True)
    for copies, code in (
        (True, "commit 000000000000 without them"),
        (False, "the files as they are"),
    ):
        monkeypatch.setattr(submit.MODES["local"], "copies_code", copies)
        with pytest.raises(InputError, match=f"not committed; .* --allow_dirty to run {code}$"):
            job("local", "--dry_run", *TASK)
        assert job("local", "--dry_run", "--allow_dirty", *TASK) == 0


def test_what_lies_here_needs_no_repository(monkeypatch, tools):
    """As in an image of a job, where git is missing."""
    monkeypatch.setenv("IMAGEN_FT_COMMIT", "0" * 40)
    assert find_checkout(is_needed=False) == Checkout(ROOT, "0" * 40, is_dirty=False)
    with pytest.raises(
        InputError, match="git is not installed, but jobs identify their code by its commit"
    ):
        find_checkout()


TINY = ("python", "-m", "tests.launch.submit.tiny_task")


def test_what_the_task_says_of_itself(monkeypatch):
    monkeypatch.chdir(ROOT)
    task = Task.of([*TINY, "--workdir=x", "--config=good"])
    assert task.flags == {"config", "coordinator", "dry_run", "workdir"}
    task.check()
    with pytest.raises(InputError, match="lists no flags, so it is not a task"):
        _ = Task.of(["python", "-m", "json.decoder"]).flags


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=good"], "--workdir is missing after --"),
        (
            ["--workdir=x", "--config=bad"],
            r"the task rejects its input \(--dry_run\): config\.lr must be a number, got x",
        ),
        (
            ["--workdir=x", "--config=broken"],
            r"the task rejects its input \(--dry_run\): ValueError: a bug",
        ),
    ],
)
def test_what_the_task_refuses(monkeypatch, arguments, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=said):
        Task.of([*TINY, *arguments]).check()


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--workdir=a b"], "a b"),
        (["-workdir", "a"], "a"),
        (["--workdir=a", "--workdir=b"], "b"),
        (["--config=workdir"], ""),
        (["--workdir"], ""),
    ],
)
def test_flags_of_a_task(arguments, value):
    assert Task("x", tuple(arguments)).workdir == value


@pytest.mark.parametrize(
    ("workdir", "shared", "is_shared"),
    [
        ("gs://bucket/run", (), True),
        ("/mnt/data/run", ("/mnt/data",), True),
        ("/mnt/data", ("/mnt/data/",), True),
        ("/mnt/database/run", ("/mnt/data",), False),
        ("/mnt/data/../run", ("/mnt/data",), False),
        ("runs/a", (), False),
        ("", (), True),
    ],
)
def test_run_directories_of_several_hosts(workdir, shared, is_shared):
    task = Task("x", (f"--workdir={workdir}",))

    class Pod(Mode):
        name = "pod"

    if is_shared:
        check_workdir(Pod, task, shared)
        return
    with pytest.raises(
        InputError, match="would be a different folder on every host; choose one at gs:"
    ):
        check_workdir(Pod, task, shared)


@pytest.mark.parametrize(
    ("workdir", "name"),
    [
        ("gs://bucket/IF I_L/", "if-i-l"),
        ("runs/64px", "job-64px"),
        ("runs/" + "a" * 27 + "_b", "a" * 27),
        ("", "finetune"),
    ],
)
def test_names_of_jobs(workdir, name):
    assert job_name("", Task("imagen_ft.finetune", (f"--workdir={workdir}",))) == name


def test_a_record_holds_no_value_of_a_variable(job, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert job("local", "--name=a", "--env=HF_TOKEN", "--", *TINY) == 0
    text = (tmp_path / "jobs" / "a.json").read_text()
    assert json.loads(text)["options"] == {"name": "a", "env": ["HF_TOKEN"]}
    said = capfd.readouterr()
    assert "secret" not in text + said.out + said.err
    assert json.loads(text)["state"] == "done" and "a: submitted" in said.err


def test_a_record_that_is_damaged(job, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.json").write_text('{"name": "a"}')
    with pytest.raises(InputError, match="has no valid 'mode'"):
        job("status", "a")


def test_commands(tools, monkeypatch):
    monkeypatch.setenv("TOKEN", "x=y z")
    tools.install("kubectl")
    tools.answer("get", out="there\n")
    assert run(Command(("kubectl", "get", "a b"))) == "there\n"
    secret = Command(("kubectl", "create", "-f", "-"), variables=("TOKEN",))
    assert run(secret) == "" and "x=y" not in str(secret)
    assert tools.calls()[1] == (["kubectl", "create", "-f", "-"], "TOKEN=x=y z\n")


@pytest.mark.parametrize(
    ("err", "said"),
    [
        (
            "Warning: old\nERROR: (gcloud.x) not allowed\nmore advice\n",
            r"ERROR: \(gcloud.x\) not al",
        ),
        ("not found: a\n", "not found: a; fix that and run it again"),
        ("", "no output"),
    ],
)
def test_commands_that_fail(tools, err, said):
    tools.install("gcloud")
    tools.answer("gcloud", err=err, code=3)
    with pytest.raises(InputError, match=rf"gcloud compute a failed \(exit code 3\): .*{said}"):
        run(Command(("gcloud", "compute", "--zone=b", "a")))
    assert run(Command(("gcloud",)), missing_ok=[err]) == "" if err else True


def test_a_program_that_is_missing(tools):
    with pytest.raises(InputError, match="kubectl is not installed"):
        run(Command(("kubectl", "get")))
    assert os.environ["PATH"].endswith("bin")


@pytest.mark.parametrize(
    ("processes", "workers", "flag"), [(2, 0, "num_processes"), (1, 2, "worker")]
)
def test_tasks_that_are_one_process(processes, workers, flag):
    task = Task("x", ())
    vars(task)["flags"] = frozenset({"coordinator"})
    check_processes(task, 1, 0)
    with pytest.raises(InputError, match=f"x has no --{flag}, so it"):
        check_processes(task, processes, workers)


def test_a_plan_as_a_script(tmp_path):
    folder = tmp_path / "of jobs"
    plan = Plan((TextFile(folder / "a b", "x\n$HOME\n"),), (Command(("cat", str(folder / "a b"))),))
    done = subprocess.run(["sh", "-ec", str(plan)], capture_output=True, text=True, check=True)
    assert done.stdout == "x\n$HOME\n" == (folder / "a b").read_text()
    plan.remove()
    assert not folder.exists()
