"""Jobs on Kubernetes: the manifest, and what is asked of kubectl."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launch.errors import InputError
from tests.launch.submit.conftest import COMMIT
from tests.launch.submit.stand_ins import check_golden

CONFIG = "--config=my configs/a.py:k=1,b='x:y',c=$(HOME)$$"
TASK = ("--", "python", "-m", "imagen_ft.finetune", CONFIG, "--workdir=gs://b/run")
TPUS = ("--tpu_type=v4-64", "--image=pkg.dev/a/b:1")
PLACE = ("--cluster=c", "--project=p", "--zone=us-central2-b")
JOBS = {
    "tpu": (*TPUS, *PLACE),
    "tpu_all": (
        "--tpu_type=v6e-16", "--image=i", "--num_slices=2", "--spot", "--grace=60", "--restarts=3",
        "--mount=gs://b:/data", "--mount=gs://c-1/some folder/:/more data", "--env=HF_TOKEN",
        "--env=WANDB", "--service_account=sa", "--namespace=ns",
    ),
    "tpu_one": ("--tpu_type=v5litepod-1", "--image=i", "--reserved=r", "--nocheck_image"),
    "tpu7x": ("--tpu_type=tpu7x-16", "--image=i", "--queue=q"),
    "gpu": ("--gpus=8", "--gpu_type=h200", "--nodes=2", "--image=i"),
    "xpk": (*TPUS, *PLACE, "--via=xpk", "--spot", "--num_slices=2"),
    "gcluster": (*TPUS, *PLACE, "--via=gcluster", "--reserved=r"),
}  # fmt: skip


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very'secret")
    monkeypatch.setenv("WANDB", "also secret=1")


@pytest.fixture
def kubectl(tools):
    """A cluster without jobs."""
    tools.install("kubectl", "gcloud")
    tools.answer("current-context", "here\n")
    return tools


def manifest(job, capsys, *options):
    assert job("gke", "--dry_run", "--name=run-1", *options, *TASK) == 0
    text = re.search(r"run-1\.yaml <<'END'\n(.*?)\nEND\n", capsys.readouterr().out, re.DOTALL)
    return yaml.safe_load(text[1])


@pytest.mark.parametrize("name", JOBS)
def test_commands(job, tools, capsys, secrets, name):
    assert job("gke", "--dry_run", "--name=run-1", *JOBS[name], *TASK) == 0
    check_golden(f"gke_{name}.txt", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["tpu", "tpu_all", "tpu_one", "tpu7x", "gpu"])
def test_manifest_has_the_fields_of_a_jobset(job, tools, capsys, secrets, name):
    jobset = manifest(job, capsys, *JOBS[name])
    # What it does not know, it drops.
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    failures = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]
    codes = failures["rules"][1]["onExitCodes"]["values"]
    assert codes == sorted({75, 137, 143})  # Kubernetes wants them in order.


def expanded(word, variables):
    """A word as Kubernetes hands it to a container."""

    def value(match):
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_]\w*)\)", value, word)


@pytest.mark.parametrize(
    ("name", "variables", "behind", "message"),
    [
        ("tpu", {"IMAGEN_FT_COMMIT": COMMIT}, [], ""),
        ("tpu", {"IMAGEN_FT_COMMIT": "abc"}, [], "the image is of commit abc, the job of 0123"),
        ("tpu", {}, [], r"the image is of commit \?"),
        ("tpu_all", {"IMAGEN_FT_COMMIT": COMMIT, "MEGASCALE_NUM_SLICES": "2"}, [], ""),
        ("tpu_all", {"IMAGEN_FT_COMMIT": COMMIT}, [], "MEGASCALE_NUM_SLICES is not set"),
        ("tpu_one", {}, [], ""),
        (
            "gpu",
            {"IMAGEN_FT_COMMIT": COMMIT, "JOB_COMPLETION_INDEX": "1"},
            ["--coordinator=run-1-hosts-0-0.run-1:8476", "--num_processes=2", "--process_id=1"],
            "",
        ),
    ],
)  # fmt: skip
def test_container_runs_the_task(
    job, tools, capsys, secrets, tmp_path, name, variables, behind, message
):
    [replicated] = manifest(job, capsys, *JOBS[name])["spec"]["replicatedJobs"]
    container = replicated["template"]["spec"]["template"]["spec"]["containers"][0]
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable} -SE\nimport sys\nprint(*sys.argv[1:], sep='\\n')\n")
    python.chmod(0o755)
    words = [expanded(word, variables) for word in container["command"] + container.get("args", [])]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if message:
        assert done.returncode == 2
        assert re.search(message, done.stderr)
        assert done.stderr.count("\n") == 1
    else:
        assert done.stdout.splitlines() == [*TASK[2:], *behind]


def test_submitted(job, kubectl, capsys, secrets, tmp_path):
    kubectl.answer("get jobset", err='Error from server (NotFound): jobsets "run-1"', code=1)
    assert job("gke", "--name=run-1", *JOBS["tpu_all"], *TASK) == 0
    calls = kubectl.calls()
    [created] = [(words, said) for words, said in calls if "secret" in words]
    assert created[1] == "HF_TOKEN=hf_very'secret\nWANDB=also secret=1\n"
    printed = "".join(capsys.readouterr())
    files = [path.read_text() for path in tmp_path.rglob("jobs/*")]
    for text in [printed, *files, *(" ".join(words) for words, _ in calls)]:
        assert "very'secret" not in text and "also secret" not in text
    record = json.loads((tmp_path / "jobs/run-1.json").read_text())
    assert record["resource"] == {
        "context": "here", "namespace": "ns", "image": "i", "secret": "run-1-env",
    }  # fmt: skip


def test_taken_back_where_it_cannot_be_created(job, kubectl, secrets, tmp_path):
    kubectl.answer("get jobset", err="(NotFound)", code=1)
    kubectl.answer("create --filename", err="error: no matches for kind JobSet", code=1)
    with pytest.raises(InputError, match="no matches for kind JobSet"):
        job("gke", "--name=run-1", *JOBS["tpu_all"], *TASK)
    assert kubectl.calls()[-1][0][3:] == ["delete", "secret", "run-1-env", "--ignore-not-found"]
    assert not (tmp_path / "jobs").exists()


def jobset(*conditions, suspend=False, restarts=0, manager="imagen-ft-submit", **labels):
    labels |= {"app.kubernetes.io/managed-by": manager}
    return json.dumps({
        "metadata": {"labels": labels},
        "spec": {"suspend": suspend},
        "status": {
            "restarts": restarts,
            "conditions": [{"type": name, "status": "True"} for name in conditions],
        },
    })  # fmt: skip


@pytest.mark.parametrize(
    ("there", "replaced"),
    [
        (jobset("Failed"), True),
        (jobset(suspend=True), True),
        (jobset(), False),
        (jobset("Completed", manager="another"), False),
    ],
)
def test_taken_name(job, kubectl, there, replaced, tmp_path):
    kubectl.answer("get jobset", there)
    if replaced:
        assert job("gke", "--name=run-1", *TPUS, *TASK) == 0
        assert any(words[3:5] == ["delete", "jobset"] for words, _ in kubectl.calls())
        return
    with pytest.raises(InputError, match="already has a JobSet 'run-1'"):
        job("gke", "--name=run-1", *TPUS, *TASK)
    assert not any("delete" in words or "create" in words for words, _ in kubectl.calls())
    assert not (tmp_path / "jobs").exists()


def pod(phase, *codes):
    statuses = [{"state": {"terminated": {"exitCode": code}}} for code in codes]
    return {"status": {"phase": phase, "containerStatuses": statuses}}


@pytest.mark.parametrize(
    ("there", "pods", "lines"),
    [
        (jobset(), [], ["state: submitted"]),
        (jobset(), [pod("Pending")], ["state: waiting"]),
        (jobset(restarts=2), [pod("Running"), pod("Failed", 75)], [
            "state: running",
            "attempts: 3; the last exit code is 75: preempted, or another process was lost",
        ]),
        (jobset("Failed"), [pod("Failed", 143), pod("Failed", 2)], [
            "state: failed",
            "attempts: 1; the last exit code is 2: wrong input, or a full disk",
        ]),
        (jobset("Completed"), [pod("Succeeded", 0)], ["state: done"]),
        (jobset(suspend=True), [], ["state: stopped"]),
        (jobset(suspend=True, **{"kueue.x-k8s.io/queue-name": "q"}), [], ["state: waiting"]),
        ("", [], ["state: stopped"]),
    ],
)  # fmt: skip
def test_status(job, kubectl, capsys, there, pods, lines):
    kubectl.answer("get jobset", err="(NotFound)", code=1)
    kubectl.answer("get jobset", there, err="" if there else "(NotFound)", code=not there)
    kubectl.answer("get pods", json.dumps({"items": pods}))
    assert job("gke", "--name=run-1", *TPUS, *TASK) == 0
    assert job("status", "run-1") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith(("state", "attempts"))][: len(lines)] == (
        lines
    )


def test_looked_at_and_ended(job, kubectl, secrets, capsys):
    kubectl.answer("get jobset", err="(NotFound)", code=1)
    assert job("gke", "--name=run-1", "--env=HF_TOKEN", *TPUS, *TASK) == 0
    capsys.readouterr()
    for action in ("logs", "stop", "delete"):
        assert job(action, "run-1", "--dry_run") == 0
    assert job("gke", "--name=queued", "--queue=q", *TPUS, *TASK) == 0
    assert job("stop", "queued", "--dry_run") == 0
    check_golden("gke_actions.txt", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tpu_type=v4-8",), "--image is missing"),
        (("--image=i",), "the machines are missing"),
        (("--image=i", "--tpu_type=v4-8", "--gpus=8"), "the machines are missing"),
        (("--image=i", "--tpu_type=v4-9"), "sizes of v4"),
        (("--image=i", "--tpu_type=v6e-8", "--host_chips=2"), "--host_chips must be"),
        (
            ("--image=i", "--tpu_type=v6e-4", "--host_chips=8"),
            "--host_chips must divide the 4 chips",
        ),
        (("--image=i", "--tpu_type=v4-8", "--num_slices=0"), "--num_slices must be at least 1"),
        (("--image=i", "--gpus=8", "--num_slices=2"), "need TPUs"),
        (("--image=i", "--tpu_type=v4-8", "--nodes=2"), "--nodes needs GPUs"),
        (("--image=i", "--tpu_type=v4-8", "--restarts=-1"), "--restarts must be"),
        (("--image=i", "--tpu_type=v4-8", "--mount=b:/data"), "--mount must be gs://BUCKET"),
        (("--image=i", "--tpu_type=v4-8", "--spot", "--reserved=r"), "pass only one of them"),
        (("--image=i", "--tpu_type=v4-8", "--env=NOT_SET_HERE"), "not set here"),
        (("--image=i", "--tpu_type=v4-8", "--via=xpk"), "needs --cluster"),
        (
            ("--image=i", "--tpu_type=v4-8", "--via=xpk", "--env=HF_TOKEN"),
            "which has its own flag for it",
        ),
        (("--image=i", "--tpu_type=v4-8", "--cluster=c"), "--project is missing"),
        (("--image=i", "--tpu_type=v4-8"), "kubectl is not installed"),
        (("--image=i", "--tpu_type=v4-8", "--workdir=run"), "folder that all hosts see: --mount="),
    ],
)
def test_bad_input(job, tools, secrets, tmp_path, options, message):
    tools.install("gcloud")
    task = TASK
    if options[-1] == "--workdir=run":
        options, task = options[:-1], (*TASK, "--workdir=run")
    with pytest.raises(InputError, match=message):
        job("gke", "--name=run-1", *options, *task)
    assert not (tmp_path / "jobs").exists()


def test_no_login(job, kubectl, tmp_path):
    kubectl.answer("get jobset", err="error: You must be logged in to the server", code=1)
    with pytest.raises(InputError, match="You must be logged in"):
        job("gke", *TPUS, *TASK)
    assert not (tmp_path / "jobs").exists()


def test_place_of_the_environment_and_of_gcloud(job, tools, monkeypatch, capsys):
    tools.install("gcloud")
    tools.answer("core/project", "mine\n")
    monkeypatch.setenv("CLOUDSDK_COMPUTE_ZONE", "zone-1")
    assert job("gke", "--dry_run", "--cluster=c", *TPUS, *TASK) == 0
    assert "--context=gke_mine_zone-1_c" in capsys.readouterr().out
