"""Managed jobs of SkyPilot: the task's YAML, its script run by bash, and the queue."""

import json
import os
import shlex
import subprocess

import pytest

from launch.errors import InputError
from tests.launch.submit.stand_ins import check_golden

TASK = (
    "--",
    "python",
    "-m",
    "imagen_ft.finetune",
    "--config=my configs/if.py:size=64,text='a b'",
    "--workdir=gs://bucket/my runs/a=1,b:2",
)
GPUS = ("--gpus=H100:8", "--nodes=2", "--spot", "--infra=gcp/us-central1", "--infra=aws")
CPUS = ("--workers=3", "--cpus=16+", "--memory=64", "--disk=100", "--env=TOKEN", "--env=OTHER")
QUEUED = "Managed Job ID: 7\n"


@pytest.fixture
def submit(job, tmp_path, tools, monkeypatch):
    """Runs `launch.submit` in a folder whose name is not easy."""
    folder = tmp_path / "it's 100% mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOKEN", "hush-of-mine")
    monkeypatch.setenv("OTHER", "of mine")

    def run(action, *argv):
        return job(action, *(("--name=cats",) if action == "sky" else ("cats",)), *argv)

    return run


@pytest.fixture
def files(submit, tmp_path):
    return lambda: sorted(path for path in tmp_path.glob("it*/**/*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one", ("--gpus=L4:1",)),
        ("gpus", GPUS),
        ("workers", CPUS),
        ("tpu", ("--tpu_type=v6e-8",)),
        ("tpus", ("--tpu_type=tpu-v5litepod-16", "--spot")),
    ],
)
def test_task(submit, files, capsys, tmp_path, name, options):
    assert submit("sky", "--dry_run", *options, *TASK) == 0
    text = capsys.readouterr().out
    assert "hush" not in text and not files()
    check_golden(f"sky_{name}.txt", text, TMP=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "code", "ends", "more"),
    [
        (("--gpus=L4:1",), 0, 0, []),
        (("--gpus=L4:1",), 2, 2, []),
        (("--gpus=L4:1",), 75, 75, []),
        (("--gpus=L4:1",), 137, 75, []),
        (GPUS, 75, 75, ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]),
        (CPUS, 1, 1, ["--worker=1", "--num_workers=3"]),
        (("--tpu_type=v5p-16",), 143, 143, ["--coordinator=auto"]),
    ],
)
def test_what_a_host_runs(submit, capsys, tmp_path, options, code, ends, more):
    assert submit("sky", "--dry_run", *options, *TASK) == 0
    block = capsys.readouterr().out.partition("\nrun: |\n")[2].partition("\nEND\n")[0]
    script = "\n".join(line[2:] for line in block.splitlines())
    programs = tmp_path / "home/imagen_ft/.venv/bin"
    programs.mkdir(parents=True)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" >../words\nexit {code}\n')
    python.chmod(0o755)
    variables = {
        "HOME": str(tmp_path / "home"),
        "PATH": os.defpath,
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2",
    }
    # SkyPilot puts lines of its own behind it.
    done = subprocess.run(["bash", "-c", f"{script}\nexit $?"], env=variables, check=False)
    assert done.returncode == ends
    folder, *words = (tmp_path / "home/words").read_text().splitlines()
    assert folder == str(tmp_path / "home/imagen_ft") and words == [*TASK[2:], *more]


@pytest.fixture
def submitted(submit, tools):
    """Submits a job whose logs end at once."""
    tools.install("git", "sky")
    tools.answer("sky jobs launch", out="a line\n\N{CLIPBOARD} Useful Commands\n" + QUEUED)

    def run(*options, **job):
        other = dict(job_id=6, job_name="cats", status="SUCCEEDED")
        jobs = [other, dict(job_id=7, job_name="cats", **job)] if job else [other]
        tools.answer("sky jobs queue", out=f"Checking\n{json.dumps(jobs, indent=2)}\n")
        return submit("sky", *options, *TASK)

    return run


def read(folder):
    return json.loads((folder / "it's 100% mine/jobs/cats.json").read_text())


@pytest.mark.parametrize(
    ("status", "state", "code"),
    [
        ("PENDING", "waiting", 0),
        ("RECOVERING", "waiting", 0),
        ("RUNNING", "running", 0),
        ("SUCCEEDED", "done", 0),
        ("CANCELLED", "stopped", 1),
        ("FAILED", "failed", 1),
        ("FAILED_SETUP", "failed", 1),
        (None, "failed", 1),
    ],
)
def test_from_start_to_end(submit, submitted, tools, tmp_path, status, state, code):
    job = dict(status=status, recovery_count=2, failure_reason="because") if status else {}
    assert submitted(*CPUS, **job) == code
    record = read(tmp_path)
    assert (record["state"], record["attempts"]) == (state, 3 if status else 1)
    assert record["resource"] == dict(job_id="7") | ({"reason": "because"} if status else {})
    calls = [shlex.join(words) for words, _ in tools.calls()]
    code_file = f"{tmp_path}/it's 100% mine/jobs/cats/code.bundle"
    assert calls[0].endswith(f" bundle create --quiet {shlex.quote(code_file)} HEAD")
    assert calls[1:] == [
        "sky jobs launch --name=cats --yes --detach-run --secret=TOKEN --secret=OTHER "
        "jobs/cats/task.yaml",
        "sky jobs logs 7",
        "sky jobs queue --all --verbose --refresh --output=json",
    ]


def test_actions(submit, submitted, tools, capsys):
    submitted("--gpus=L4:1", status="RUNNING", recovery_count=1)
    assert submit("status") == 0
    said = capsys.readouterr().out
    assert said.startswith("job: cats (sky, since ") and "\nattempts: 2\n" in said
    assert submit("stop") == 0 and submit("logs") == 0
    calls = [shlex.join(words) for words, _ in tools.calls()]
    assert calls[5] == "sky jobs cancel --yes 7" and calls[-1] == "sky jobs logs 7"


def test_a_value_is_written_nowhere(submitted, files, tools, capfd):
    submitted(*CPUS, status="RUNNING")
    assert len(files()) == 2
    texts = [path.read_text() for path in files()]
    assert "hush" not in "".join((*texts, *capfd.readouterr(), str(tools.calls())))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus=8",), "--gpus must be TYPE:N, such as H100:8, got 8"),
        (("--gpus=H100:8", "--tpu_type=v6e-8"), "--tpu_type and --gpus exclude each other"),
        (
            ("--tpu_type=v6e-7",),
            "--tpu_type must have one of the sizes of v6e, 1, 4, 8, 16, 32, 64, 128, 256",
        ),
        (("--tpu_type=tpu-tpu7x-8",), "TPU7x and later are not in the Cloud TPU API"),
        (("--tpu_type=v6e-8", "--nodes=2"), "SkyPilot does not join slices"),
        (("--tpu_type=v6e-8", "--infra=k8s/x"), "use the mode gke"),
        (
            ("--tpu_type=v6e-16", "--workers=2"),
            "--workers needs machines of one host, got v6e-16 with 4",
        ),
        (("--nodes=2", "--workers=2"), "--workers and several processes"),
        (("--cpus=many",), r"--cpus must be N or N\+, got many"),
        (("--disk=0",), "--disk must be at least 1, got 0"),
        (("--env=NOT_SET_ANYWHERE",), "this variable is not set here"),
    ],
)
def test_refused(submit, files, options, said):
    with pytest.raises(InputError, match=said):
        submit("sky", *options, *TASK)
    assert not files()


def test_words_and_folders_that_are_refused(submit, files):
    with pytest.raises(
        InputError, match="--workdir=runs/a would be a different folder on every host"
    ):
        submit("sky", *TASK[:-1], "--workdir=runs/a")
    with pytest.raises(InputError, match="has a character that"):
        submit("sky", *TASK, "--x=a\nb")
    assert not files()


def test_what_sky_refuses(submit, files, tools):
    tools.install("git")
    with pytest.raises(InputError, match=r"sky is not installed; pip install"):
        submit("sky", *TASK)
    tools.install("sky")
    tools.answer("sky jobs launch", err="No cloud access is set up\n", code=1)
    with pytest.raises(InputError, match=r"sky jobs launch .*\(exit code 1\): No cloud access is"):
        submit("sky", *TASK)
    assert not files()


def test_answers_that_are_not_understood(submit, submitted, tools):
    submitted(status="RUNNING")
    (tools.folder / "answers.json").write_text("[]")
    tools.answer("sky jobs queue", out="[nothing\n")
    with pytest.raises(InputError, match="printed no JSON; update SkyPilot"):
        submit("status")
    (tools.folder / "answers.json").write_text("[]")
    tools.answer("sky jobs launch", out="started\n")
    tools.answer("sky jobs queue", out="None\n")
    with pytest.raises(InputError, match="did not print the job's number"):
        submit("sky", *TASK)
