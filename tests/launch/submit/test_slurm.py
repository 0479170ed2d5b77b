"""Jobs of a Slurm cluster: the batch script run by bash, with stand-ins for Slurm's programs."""

import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from launch.errors import InputError
from launch.submit import slurm
from tests.launch.submit.stand_ins import check_golden

TASK = (
    "--",
    "python",
    "-m",
    "imagen_ft.finetune",
    "--config=my configs/if.py:size=64,text='a b'",
    "--workdir=/home/ada/my runs/a=1,b:2",
)
GPUS = (
    "--nodes=2",
    "--gpus=a100:4",
    "--processes_per_node=4",
    "--cpus=12",
    "--time=1-00:00:00",
    "--partition=long",
    "--account=lab",
    "--qos=low",
    "--mem=200G",
    "--sbatch=--constraint=[a100|h100]",
    '--sbatch=--comment=#7 of "c:\\runs"',
    "--grace=300",
    "--restarts=3",
    "--env=TOKEN",
    "--env=OTHER",
)
ALONE = {"SLURM_JOB_ID": "4321"}
# The last of an array's jobs has its number.
WORKER = ALONE | {"SLURM_ARRAY_JOB_ID": "4321", "SLURM_ARRAY_TASK_ID": "1"}


@pytest.fixture
def folder(job, tmp_path, monkeypatch):
    """The folder of a user, whose name is not easy."""
    path = tmp_path / "it's 100% mine"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def submit(job, folder, tools):
    """Runs `launch.submit`; of mode slurm as of a cluster that shares this machine's folders."""

    def run(action, *argv):
        named = ("--name=cats", "--node_disks=/nowhere") if action == "slurm" else ("cats",)
        return job(action, *named, *argv)

    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [("node", ("--time=unlimited",)), ("gpus", GPUS), ("workers", ("--workers=8", "--gpus=1"))],
)
def test_script(submit, folder, capsys, monkeypatch, tmp_path, name, options):
    monkeypatch.setenv("TOKEN", "secret-of-mine")
    monkeypatch.setenv("OTHER", "of mine")
    assert submit("slurm", "--dry_run", *options, *TASK) == 0
    text = capsys.readouterr().out
    assert "secret" not in text and not list(folder.iterdir())
    head, _, body = text.partition("\nsay() {")
    check_golden(f"slurm_{name}.txt", f"{head}\n", TMP=str(tmp_path))
    check_golden("slurm_body.txt", f"say() {{{body}")


class Node:
    """A node on which the batch script is run, with Slurm's programs as scripts of a test.

    Attributes:
        folder: of the programs; they note their calls there.
    """

    def __init__(self, folder):
        self.folder = folder
        self.path = f"{folder}:{os.defpath}"
        for name in ("sbatch", "srun", "scontrol", "scancel", "squeue"):
            self.program(name, "")

    def program(self, name, body):
        note = f"printf '%s\\n' \"${{0##*/}} $*\" >>{shlex.quote(str(self.folder / 'calls'))}"
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{note}\ncd {shlex.quote(str(self.folder))}\n{body}\n")
        path.chmod(0o755)

    def start(self, script, environment):
        variables = {"PATH": self.path, "HOME": str(self.folder), **ALONE, **environment}
        return subprocess.Popen(
            ["bash", script], env=variables, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def calls(self, name):
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def node(tmp_path):
    folder = tmp_path / "of slurm"
    folder.mkdir()
    return Node(folder)


@pytest.fixture
def script(submit, folder, node, capsys):
    """Writes a batch script as --dry_run says; returns its path."""

    def write(*options):
        assert submit("slurm", "--dry_run", *options, *TASK) == 0
        text = capsys.readouterr().out
        subprocess.run(["sh", "-ec", text], env={"PATH": node.path}, check=True)
        assert node.calls("sbatch") == ["sbatch --parsable --export=ALL jobs/cats/job.sbatch"]
        return str(folder / "jobs/cats/job.sbatch")

    return write


def ends(*lines, code):
    """An srun whose tasks end so."""
    said = "; ".join(f"echo 'srun: error: gpu07: {line}' >&2" for line in lines)
    return f"{said or ':'}; exit {code}"


TWO = ("task 3: Exited with exit code 2", "tasks 0-2: Exited with exit code 75")
ONE = ("tasks 0-2: Exited with exit code 75", "task 3: Killed")


@pytest.mark.parametrize(
    ("srun", "code", "goes_on"),
    [
        (ends(code=0), 0, False),
        (ends(code=1), 1, False),
        (ends("task 0: Exited with exit code 2", code=2), 2, False),
        (ends("task 0: Exited with exit code 75", code=75), 75, True),
        (ends("task 0: Killed", code=137), 137, True),
        (ends("task 0: Terminated", code=143), 143, True),
        # srun's own code is the highest.
        (ends(*TWO, code=75), 2, False),
        (ends(*reversed(TWO), code=75), 2, False),
        (ends(*ONE, code=137), 75, True),
        (ends("task 3: Segmentation fault", ONE[0], code=139), 139, False),
        (ends("task 3: Exited with exit code 1", "task 0: Killed", code=137), 1, False),
        (ends("Unable to create step for job 4321: Invalid account", code=1), 1, False),
    ],
)
def test_what_is_requeued(script, node, folder, srun, code, goes_on):
    node.program("srun", srun)
    running = node.start(script(), {})
    _, said = running.communicate(timeout=30)
    assert running.returncode == code
    assert node.calls("scontrol") == (["scontrol requeue 4321"] if goes_on else [])
    assert (folder / "jobs/cats/4321.codes").read_text() == f"{code}\n"
    assert f"slurm: exit code {code}" in said and ("of at most 10" in said) == goes_on


STOPS = 'for each in ../*/jobs/cats; do >"$each/4321.stopped"; done; exit 75'


@pytest.mark.parametrize(
    ("environment", "files", "programs", "said"),
    [
        ({"SLURM_RESTART_COUNT": "10"}, [], {}, "exit code 75 after 10 restarts, which is the lim"),
        ({}, [], {"srun": STOPS}, "exit code 75: stopped"),
        ({}, ["4321.stopped"], {}, "this job was stopped"),
        ({}, [], {"scontrol": "exit 1"}, "it could not be requeued: submit it again"),
        ({}, [], {}, "error: the variable TOKEN has not come along"),
    ],
)
def test_what_is_not_requeued(
    script, node, folder, monkeypatch, environment, files, programs, said
):
    monkeypatch.setenv("TOKEN", "secret-of-mine")
    for name, body in {"srun": "exit 75", **programs}.items():
        node.program(name, body)
    path = script("--env=TOKEN")
    for name in files:
        (folder / "jobs/cats" / name).touch()
    environment = environment if "TOKEN" in said else {"TOKEN": "x", **environment}
    running = node.start(path, environment)
    assert said in running.communicate(timeout=30)[1]
    assert len(node.calls("scontrol")) == ("could not" in said)
    assert len(node.calls("srun")) == (not said.startswith(("this", "error")))


def test_a_worker(script, node, folder):
    node.program("srun", "exit 75")
    running = node.start(script("--workers=8"), WORKER)
    running.communicate(timeout=30)
    assert node.calls("scontrol") == ["scontrol requeue 4321_1"]
    (call,) = node.calls("srun")
    assert call.endswith("--workdir=/home/ada/my runs/a=1,b:2 --worker=1 --num_workers=8")
    logs = str(folder).replace("%", "%%") + "/jobs/cats/4321_1-process-%t.log"
    assert f" --kill-on-bad-exit=1 --export=ALL --open-mode=append --output={logs} " in call
    assert (folder / "jobs/cats/4321_1.codes").read_text() == "75\n"


def test_the_task_gets_its_words_and_the_folder(script, node, folder):
    node.program("srun", f'printf "%s\\n" "$OLDPWD" "${{@: -5}}" >{shlex.quote(str(folder))}/words')
    node.start(script(), {}).communicate(timeout=30)
    words = (folder / "words").read_text().splitlines()
    assert words == [str(folder), sys.executable, *TASK[2:]]


@pytest.mark.parametrize(
    ("state", "end", "forwarded", "goes_on"),
    [
        # This script alone was told.
        ("RUNNING", +3600, True, True),
        # Somebody has cancelled the job, or needs the node.
        ("COMPLETING", +3600, False, False),
        ("COMPLETING", None, False, False),
        # The time limit, in spite of the signal before it.
        ("COMPLETING", -1, False, True),
    ],
)
def test_sigterm(script, node, state, end, forwarded, goes_on):
    # Tasks are told by Slurm, or by scancel; srun itself would kill them.
    save = 'echo "srun: error: gpu07: task 0: Exited with exit code 75" >&2; exit 75'
    node.program(
        "srun", f"trap '{save}' USR1\necho $$ >new; mv new here; while :; do sleep 0.01; done"
    )
    told = "kill -USR1 $(<here)"
    node.program("scancel", told)
    node.program("squeue", f"echo {state}" + ("" if state == "RUNNING" else f"; {told}"))
    environment = {} if end is None else {"SLURM_JOB_END_TIME": str(int(time.time()) + end)}
    running = node.start(script(), environment)
    while not (node.folder / "here").exists():
        time.sleep(0.01)
    running.terminate()
    running.communicate(timeout=30)
    assert running.returncode == 75
    assert node.calls("scancel") == (["scancel --signal=TERM 4321"] if forwarded else [])
    assert node.calls("scontrol") == (["scontrol requeue 4321"] if goes_on else [])


GONE = dict(err="slurm_load_jobs error: Invalid job id specified\n", code=1)


@pytest.fixture
def submitted(submit, tools, monkeypatch):
    """Submits a job that nobody follows."""
    tools.install("sbatch", "squeue", "sacct", "scancel")
    tools.answer("sbatch", out="4321;east\n")
    monkeypatch.setattr(slurm.Slurm, "follow", lambda self, record, folder: 0)

    def run(*options):
        assert submit("slurm", *options, *TASK) == 0

    return run


def state(folder):
    text = json.loads((folder / "jobs/cats.json").read_text())
    return text["state"], text["exit_codes"]


@pytest.mark.parametrize(
    ("queue", "accounts", "codes", "expected"),
    [
        ("PENDING\n", "", [], "waiting"),
        ("RUNNING\n", "", [75], "running"),
        ("PENDING\nRUNNING\n", "", [], "running"),
        ("", "COMPLETED\n", [75, 0], "done"),
        ("", None, [75, 0], "done"),
        ("", "FAILED\n", [2], "failed"),
        ("", "FAILED\n", [75, 75], "preempted"),
        ("", None, [], "failed"),
        ("", "CANCELLED by 1000\n", [75], "stopped"),
        ("", "TIMEOUT\n", [], "preempted"),
        ("", "OUT_OF_MEMORY\n", [75], "failed"),
    ],
)
def test_status(submit, submitted, folder, tools, capsys, queue, accounts, codes, expected):
    submitted()
    tools.answer("squeue", **(dict(out=queue) if queue else GONE))
    disabled = dict(err="Slurm accounting storage is disabled\n", code=1)
    tools.answer("sacct", **(disabled if accounts is None else dict(out=accounts)))
    (folder / "jobs/cats/4321.codes").write_text("".join(f"{code}\n" for code in codes))
    assert submit("status") == 0
    assert state(folder) == (expected, codes)
    said = capsys.readouterr().out
    attempts = len(codes) + (expected == "running")
    assert (f"\nattempts: {attempts}" in said) == (attempts > 0)
    assert said.startswith("job: cats (slurm, since ") and f"\nstate: {expected}\n" in said
    lines = [shlex.join(words) for words, _ in tools.calls()[1:]]
    of_job = "--clusters=east --jobs=4321"
    asked = [f"squeue {of_job} --noheader --array --format=%T"]
    asked += (
        [] if queue else [f"sacct {of_job} --allocations --noheader --parsable2 --format=State"]
    )
    assert lines == asked


def test_status_of_workers(submit, submitted, folder, tools):
    submitted("--workers=2")
    tools.answer("squeue", **GONE)
    for worker, codes in enumerate(("75\n0\n", "1\n")):
        (folder / f"jobs/cats/4321_{worker}.codes").write_text(codes)
    assert submit("status") == 0
    assert state(folder) == ("failed", [75, 0, 1])


def test_stop_keeps_it_from_being_started_again(submit, submitted, folder, tools, capsys):
    submitted()
    assert submit("stop", "--dry_run") == 0
    check_golden("slurm_stop.txt", capsys.readouterr().out, TMP=str(folder.parent))
    assert not (folder / "jobs/cats/4321.stopped").exists()
    tools.answer("squeue", out="RUNNING\n")
    tools.answer(
        "state=PENDING", err="scancel: error: job id 4321: Invalid job id specified\n", code=1
    )
    assert submit("stop") == 0
    lines = [shlex.join(words) for words, _ in tools.calls()[1:]]
    assert lines[:2] == [
        "scancel --clusters=east --state=RUNNING --signal=TERM 4321",
        "scancel --clusters=east --state=PENDING 4321",
    ]
    assert (folder / "jobs/cats/4321.stopped").exists()
    tools.install("tail")
    assert submit("logs") == 0
    names = [f"{folder}/jobs/cats/4321{rest}" for rest in (".log", "-process-0.log")]
    assert tools.calls()[-1][0] == ["tail", "-q", "-n", "100", "-F", *names]


@pytest.mark.parametrize(("last", "code"), [(0, 0), (2, 2)])
def test_following(submit, folder, tools, capfd, monkeypatch, last, code):
    tools.install("sbatch", "squeue", "sacct")
    tools.answer("sbatch", out="4321\n")
    answers = (
        dict(out="PENDING\n"),
        dict(err="slurmctld is down\n", code=1),
        dict(out="RUNNING\n"),
    )
    for answer in (*answers, GONE):
        tools.answer("squeue", **answer)
    monkeypatch.setattr(slurm, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    look = slurm.Slurm.look

    def write_and_look(self, record):
        logs = folder / "jobs/cats"
        with (logs / "4321-process-0.log").open("a") as log:
            log.write("step\n")
        (logs / "4321.codes").write_text(f"{last}\n")
        return look(self, record)

    monkeypatch.setattr(slurm.Slurm, "look", write_and_look)
    assert submit("slurm", *TASK) == code
    said = capfd.readouterr()
    assert said.out == "step\n" * 4
    assert "cats: Ctrl-C leaves it running" in said.err
    assert state(folder)[0] == ("failed" if last else "done")


def test_a_value_is_written_nowhere(submitted, folder, monkeypatch, capfd, tools):
    monkeypatch.setenv("TOKEN", "secret-of-mine")
    submitted("--env=TOKEN")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2
    texts = [path.read_text() for path in files]
    assert "secret" not in "".join((*texts, *capfd.readouterr(), str(tools.calls())))
    assert tools.calls()[0][0][1:3] == ["--parsable", "--export=ALL"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--nodes=0",), "--nodes must be at least 1, got 0"),
        (("--restarts=-1",), "--restarts must be at least 0, got -1"),
        (("--grace=70000",), "--grace must be at most 65535 seconds"),
        (("--time=3",), "--time must be more than --grace=120 seconds and 60 more"),
        (("--time=0-0:10:0", "--grace=540"), "the job would have to stop at once"),
        (("--time=soon",), "--time must be like 90 \\(minutes\\), 1:30:00 or 2-12:00:00, got soon"),
        (("--gpus=a100",), "--gpus must be N or TYPE:N, got a100"),
        (("--gpus=8", "--processes_per_node=3"), "must divide the 8 GPUs of a node evenly"),
        (("--nodes=2", "--workers=4"), "--workers and several processes exclude each other"),
        (("--sbatch=constraint=a100",), "--sbatch must be an option, such as --constraint=a100"),
        (("--partition=a\nb",), "cannot have a line break"),
        (
            ("--node_disks=/home/ada",),
            r"--workdir, /home/ada/my runs/a=1,b:2, is under /home/ada, w",
        ),
        (
            ("--node_disks=/tmp",),
            "the folder that this was started in, /tmp/.* is under /tmp, which",
        ),
        (
            ("--jobs=/nowhere/jobs",),
            "--jobs, /nowhere/jobs/cats, is under /nowhere, which is a dif",
        ),
        (("--jobs=a\\b",), "without a backslash, which Slurm reads as its own"),
        (("--env=NOT_SET_ANYWHERE",), "this variable is not set here"),
    ],
)
def test_refused(submit, folder, options, said):
    options = [option.replace("<HERE>", str(folder)) for option in options]
    with pytest.raises(InputError, match=said):
        submit("slurm", *options, *TASK)
    assert not list(folder.iterdir())


def test_what_sbatch_refuses(submit, folder, tools):
    with pytest.raises(InputError, match="sbatch is not installed"):
        submit("slurm", *TASK)
    tools.install("sbatch")
    tools.answer("sbatch", err="sbatch: error: invalid partition specified: x\n", code=1)
    with pytest.raises(InputError, match=r"sbatch .* \(exit code 1\): sbatch: error: invalid part"):
        submit("slurm", *TASK)
    assert not (folder / "jobs").exists()


def test_a_greeting_before_the_number(submit, folder, tools, monkeypatch):
    monkeypatch.setattr(slurm.Slurm, "follow", lambda self, record, folder: 0)
    tools.install("sbatch")
    tools.answer("sbatch", out="Welcome to the cluster\n4321;east\n")
    tools.answer("sbatch", out="Welcome\n")
    assert submit("slurm", *TASK) == 0
    assert json.loads((folder / "jobs/cats.json").read_text())["resource"]["job_id"] == "4321"
    with pytest.raises(InputError, match="sbatch did not print the job's number"):
        submit("slurm", "--name=dogs", *TASK)


def test_a_name_that_is_taken(submit, submitted, tools):
    submitted()
    tools.answer("squeue", out="PENDING\n")
    with pytest.raises(InputError, match=r"a job 'cats' is waiting \(slurm\)"):
        submit("slurm", *TASK)
    assert [words[0] for words, _ in tools.calls()] == ["sbatch", "squeue"]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:0:30", 3630), ("2-3", 183600), ("1-0:1", 86460)],
)
def test_times(time, seconds):
    assert slurm._seconds(time) == seconds
