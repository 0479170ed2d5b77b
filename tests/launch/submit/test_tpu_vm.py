"""Jobs on TPU VMs: what is asked of gcloud, and how a follower takes what it answers."""

import json
import os

import pytest

from launch.errors import InputError
from launch.submit import __main__ as submit
from tests.launch.submit.stand_ins import check_golden

CONFIG = "--config=my configs/a.py:k=1,b='x:y',c=$HOME"
TASK = ("--", "python", "-m", "imagen_ft.finetune", CONFIG, "--workdir=gs://b/run")
PLACE = ("--project=p", "--zone=us-central2-b")
NEW = ("tpu-vm", "--name=run-1", "--tpu_type=v4-16", "--spot", *PLACE)
TWO_HOSTS = json.dumps({"state": "READY", "networkEndpoints": [{}, {}]})
CREATED, DELETED = "queued-resources create", "queued-resources delete"


@pytest.fixture
def gcloud(tools, monkeypatch):
    """A project in which all goes well but for what a test says before."""
    tools.install("gcloud", "git")
    tools.slept = []
    monkeypatch.setattr(submit.MODES["tpu-vm"], "sleep", tools.slept.append)
    return tools


def says(tools, states=(), looks=()):
    """What gcloud says of the queued resource, and the two hosts of the job, one after another."""
    for state in states:
        tools.answer("queued-resources describe", f"{state}\n")
    for words in looks:
        tools.answer("job: none", "".join(f"job: {each}\n" for each in words))
    tools.answer("tpu-vm describe", TWO_HOSTS)


def steps(tools):
    """What was asked for, in short."""
    names = {
        CREATED: "create", DELETED: "delete", "scp": "copy", "uv venv": "install",
        "setsid": "start", "job: none": "look", "--pid": "log", "touch stopped": "stop",
    }  # fmt: skip
    lines = [" ".join(words) for words, _ in tools.calls()]
    return [name for line in lines for part, name in names.items() if part in line]


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very'secret")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("new", ("--tpu_type=v4-64", "--spot", "--env=HF_TOKEN")),
        (
            "slices",
            ("--tpu_type=v6e-16", "--num_slices=2", "--reserved", "--create=--network=a b"),
        ),
        ("cube", ("--tpu_type=v4-256", "--topology=4x4x8", "--runtime_version=v")),
        ("long", ("--tpu_type=v4-512", "--topology=4x4x16")),
        ("there", ("--tpu=mine", "--internal_ip")),
    ],
)
def test_commands(job, tools, capsys, secrets, tmp_path, name, options):
    assert job("tpu-vm", "--dry_run", "--name=run-1", *PLACE, *options, *TASK) == 0
    check_golden(f"tpu_vm_{name}.txt", capsys.readouterr().out, HERE=str(tmp_path))


def test_waits_starts_and_restarts(job, gcloud, capsys, secrets, tmp_path):
    says(
        gcloud,
        ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
        [["running"] * 2, ["ended 75 0", "ended 143 0"], ["running"] * 2, ["ended 0 1"] * 2],
    )
    assert job(*NEW, "--env=HF_TOKEN", *TASK) == 0
    assert steps(gcloud) == [
        "create", "copy", "install", "start", "start", "look", "log", "look", "start", "start",
        "look", "log", "look",
    ]  # fmt: skip
    assert gcloud.slept == [30.0] * 3 + [5.0] * 2
    record = json.loads((tmp_path / "jobs/run-1.json").read_text())
    assert (record["state"], record["exit_codes"], record["attempts"]) == ("done", [75, 0], 2)
    said = capsys.readouterr().err
    assert said.count("its machines are WAITING_FOR_RESOURCES") == 1
    assert "exit code 75; restarting" in said
    assert "done; its machines, or the request for them, still exist and cost money" in said
    starts = [(words, read) for words, read in gcloud.calls() if "setsid" in " ".join(words)]
    assert {read for _, read in starts} == {"HF_TOKEN=hf_very'secret\n"}
    texts = [said, *(path.read_text() for path in tmp_path.rglob("jobs/*.json"))]
    texts += [" ".join(words) for words, _ in gcloud.calls()]
    assert not any("secret" in text for text in texts)


def test_suspended_machines_are_asked_for_once_more(job, gcloud, capsys, tmp_path):
    says(
        gcloud,
        ["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "PROVISIONING", "ACTIVE"],
        [["running"] * 2, ["ended 0 0"] * 2],
    )
    assert job(*NEW, *TASK) == 0
    assert steps(gcloud) == [
        "create", "copy", "install", "start", "start", "look", "log", "delete", "create", "copy",
        "install", "start", "start", "look",
    ]  # fmt: skip
    create, again = (words for words, _ in gcloud.calls() if CREATED in " ".join(words))
    assert create == again
    assert "the machines were taken away; asking for new ones" in capsys.readouterr().err


def test_machines_that_cannot_be_had_again_at_once(job, gcloud):
    gcloud.answer(CREATED)
    gcloud.answer(CREATED, err="ERROR: quota", code=1)
    gcloud.answer(CREATED)
    says(gcloud, ["SUSPENDED", "", "ACTIVE"], [["ended 0 0"] * 2])
    assert job(*NEW, *TASK) == 0
    assert steps(gcloud)[:5] == ["create", "delete", "create", "delete", "create"]


@pytest.mark.parametrize(
    ("looks", "code", "state"),
    [
        ([["ended 1 0", "ended 75 0"]], 1, "failed"),
        ([["ended 2 0"] * 2], 2, "failed"),
        ([["ended 75 1"] * 2], 75, "preempted"),
        ([["ended 137 1"] * 2], 137, "failed"),
        ([["stopped 75 0"] * 2], 75, "stopped"),
        ([["stopped 0 0"] * 2], 0, "done"),
        # A host that has come anew has no folder of the job: all begin again.
        ([["none", "ended 75 0"], ["ended 0 0"] * 2], 0, "done"),
    ],
)
def test_ends(job, gcloud, tmp_path, looks, code, state):
    says(gcloud, ["ACTIVE"], looks)
    assert job(*NEW, "--restarts=1", *TASK) == code
    record = json.loads((tmp_path / "jobs/run-1.json").read_text())
    assert record["state"] == state


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ("FAILED", "see gcloud compute tpus queued-resources describe run-1"),
        ("FAILED", "run-1: failed; its machines"),
        ("", "run-1: stopped\n"),
    ],
)
def test_machines_that_do_not_come(job, gcloud, capsys, machines, message):
    says(gcloud, [machines])
    assert job(*NEW, *TASK) == 1
    assert message in capsys.readouterr().err


def test_a_step_that_fails_leaves_the_machines_and_says_so(job, gcloud, capsys, tmp_path):
    gcloud.answer("uv venv", err="no space left on device", code=1)
    says(gcloud, ["ACTIVE"])
    with pytest.raises(
        InputError, match=r"no space left.*follow run-1 resumes.*delete run-1 gives"
    ):
        job(*NEW, *TASK)
    assert len(gcloud.slept) == 4  # It is tried five times.
    assert (tmp_path / "jobs/run-1.json").exists()
    assert DELETED not in str(gcloud.calls())


def test_taken_up_by_another_terminal(job, gcloud, capsys, monkeypatch, secrets):
    def interrupt(seconds):
        raise KeyboardInterrupt

    says(gcloud, ["WAITING_FOR_RESOURCES", "SUSPENDED", "ACTIVE"], [["ended 0 0"] * 2])
    monkeypatch.setattr(submit.MODES["tpu-vm"], "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job(*NEW, "--env=HF_TOKEN", *TASK)
    assert "follow run-1 resumes" in capsys.readouterr().err
    assert job("status", "run-1") == 0
    printed = capsys.readouterr().out
    assert "machines: SUSPENDED; python -m launch.submit follow run-1 continues it" in printed
    with pytest.raises(InputError, match="a job 'run-1' is waiting"):
        job(*NEW, *TASK)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="HF_TOKEN: this variable is not set"):
        job("follow", "run-1")
    monkeypatch.setenv("HF_TOKEN", "x")
    assert job("follow", "run-1") == 0


def test_looked_at_and_ended(job, gcloud, capsys):
    says(gcloud, ["ACTIVE"], [["ended 2 0"] * 2])
    job(*NEW, *TASK)
    capsys.readouterr()
    for action in ("logs", "stop", "delete"):
        assert job(action, "run-1", "--dry_run") == 0
    check_golden("tpu_vm_actions.txt", capsys.readouterr().out)
    assert job("delete", "run-1") == 0
    assert steps(gcloud)[-1] == "delete"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the machines are missing"),
        (("--tpu_type=v4-8", "--tpu=mine"), "the machines are missing"),
        (
            ("--tpu_type=v9-8",),
            "--tpu_type must be GENERATION-SIZE, as v4-32, v5litepod-16, v5p-32 or v6e-16, with",
        ),
        (("--tpu_type=tpu7x-8",), "TPU7x and later are not in the Cloud TPU API"),
        (("--tpu=mine", "--spot"), "not for --tpu"),
        (("--tpu_type=v4-8", "--spot", "--reserved"), "pass only one of them"),
        (("--tpu_type=v4-8", "--num_slices=0"), "--num_slices must be at least 1"),
        (("--tpu_type=v5p-128", "--topology=2x4x8"), "needs --tpu_type=v4"),
        (("--tpu_type=v4-8", "--env=NOT_SET_HERE"), "not set here"),
        (("--tpu_type=v4-8", "--shared=/nfs"), "all hosts see .* --shared=FOLDER"),
        (("--tpu=mine",), "does not exist or is not READY"),
        (("--tpu_type=v4-8",), "You do not currently have an active account selected"),
    ],
)
def test_bad_input(job, gcloud, tmp_path, options, message):
    account = "ERROR: (gcloud) You do not currently have an active account selected.\nPlease run:\n"
    gcloud.answer(CREATED, err=account, code=1)
    gcloud.answer("tpu-vm describe", err="ERROR: NOT_FOUND: mine was not found", code=1)
    with pytest.raises(InputError, match=message):
        workdir = ("--workdir=/disk/run",) if "--shared=/nfs" in options else ()
        job("tpu-vm", "--name=run-1", *PLACE, *options, *TASK, *workdir)
    assert not (tmp_path / "jobs").exists()
    assert "delete" not in str(gcloud.calls())


def test_a_later_job_of_that_name_is_left_alone(job, gcloud, capsys, monkeypatch, tmp_path):
    """The machines are called as before: somebody else has deleted these, and asked for others."""

    def replace(seconds):
        path = tmp_path / "jobs/run-1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"submitted": 1.0}))

    says(gcloud, ["PROVISIONING", "ACTIVE"], [["ended 0 0"] * 2])
    monkeypatch.setattr(submit.MODES["tpu-vm"], "sleep", replace)
    assert job(*NEW, *TASK) == 1
    assert "a later job has this name" in capsys.readouterr().err
    assert steps(gcloud) == ["create"]


def test_only_one_terminal_follows(job, gcloud, monkeypatch, tmp_path):
    says(gcloud, ["ACTIVE"], [["ended 0 0"] * 2])
    assert job(*NEW, *TASK) == 0
    monkeypatch.setattr(os, "getpid", lambda: 1)  # From here on this process is another one.
    with pytest.raises(InputError, match=r"run-1 is followed by process .* press Ctrl-C there"):
        job("follow", "run-1")


def test_what_is_refused_leaves_an_earlier_job_alone(job, gcloud, tmp_path):
    says(gcloud, ["ACTIVE"], [["ended 0 0"] * 2])
    assert job(*NEW, *TASK) == 0
    log, record = tmp_path / "jobs/run-1/process-0.log", tmp_path / "jobs/run-1.json"
    log.write_text("of another mode")
    before = record.read_bytes()
    gcloud.answer("accelerator-type=v5p-8", err="ERROR: quota", code=1)
    with pytest.raises(InputError, match="quota"):
        job("tpu-vm", "--name=run-1", "--tpu_type=v5p-8", *PLACE, *TASK)
    assert log.read_text() == "of another mode" and record.read_bytes() == before


def test_without_gcloud(job, tools, tmp_path):
    tools.install("git")
    with pytest.raises(InputError, match="gcloud is not installed"):
        job(*NEW, *TASK)
    assert not (tmp_path / "jobs").exists()
