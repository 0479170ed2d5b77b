"""Records of jobs, which several terminals read and write at once."""

import dataclasses

import pytest

from launch.errors import InputError
from launch.submit import __main__ as submit
from launch.submit import mode, record, terminal
from launch.submit.plan import Plan

TASK = ("--", "python", "-m", "imagen_ft.finetune", "--config=a.py", "--workdir=gs://b/run")
# All but local, with what they have to be told.
MODES = {
    "slurm": ("--node_disks=/nowhere",),
    "sky": (),
    "gke": ("--image=i", "--tpu_type=v4-8"),
    "tpu-vm": ("--tpu_type=v4-8", "--project=p", "--zone=z"),
}


def a_job(**fields):
    words = dict(name="a", mode="local", command=[], workdir="", commit="", options={})
    return record.Record(**words | dict(resource={}) | fields)


@pytest.fixture
def local(monkeypatch):
    return submit.MODES["local"]


def test_a_look_does_not_undo_what_the_job_has_written(job, local, monkeypatch, tmp_path, capsys):
    """Its terminal ends between the look's first glance and its last."""
    jobs = tmp_path / "jobs"
    kept = a_job(state="running").keep(jobs)

    def look(self, seen):
        kept.with_(jobs, state="done", exit_codes=[0])
        return dataclasses.replace(seen, state="failed")

    monkeypatch.setattr(type(local), "look", look)
    assert job("status", "a") == 0
    assert "state: done\n" in capsys.readouterr().out
    assert record.read(jobs, "a").exit_codes == [0]


def test_a_terminal_leaves_a_later_job_of_that_name_alone(tmp_path):
    first = a_job(state="done", submitted=1.0).keep(tmp_path)
    later = a_job(submitted=2.0)
    with record.claimed(tmp_path, later, first):
        pass
    first.with_(tmp_path, state="failed")
    assert record.read(tmp_path, "a") == later


def test_a_name_is_given_once(tmp_path):
    ended = a_job(state="done").keep(tmp_path)
    with record.claimed(tmp_path, a_job(submitted=1.0), ended):
        for seen in (ended, None):
            with pytest.raises(InputError, match="another terminal just started a job 'a'"):
                record.claimed(tmp_path, a_job(), seen).__enter__()
    assert record.read(tmp_path, "a").submitted == 1.0


@pytest.mark.parametrize("ended", [None, a_job(state="done")])
def test_what_is_refused_leaves_no_record(tmp_path, ended):
    folder = tmp_path / "jobs"
    if ended:
        ended.keep(folder)
    with pytest.raises(InputError, match="quota"), record.claimed(folder, a_job(), ended):
        raise InputError("quota")
    assert record.read(folder, "a") == ended if ended else not folder.exists()


@pytest.mark.parametrize("name", MODES)
def test_a_job_whose_start_is_cut_off_is_not_lost(job, tools, monkeypatch, capsys, name):
    """By Ctrl-C, when its programs may have begun to start it: it may cost."""

    def start(*arguments):
        raise KeyboardInterrupt

    tools.install("kubectl", "gcloud", "squeue", "sky")
    tools.answer("get jobset", err="(NotFound)", code=1)
    tools.answer("queued-resources", err="NOT_FOUND", code=1)
    monkeypatch.setattr(type(submit.MODES[name]), "start", start)
    line = (name, "--name=a", *MODES[name], *TASK)
    with pytest.raises(KeyboardInterrupt):
        job(*line)
    with pytest.raises(InputError, match=r"'a' is (starting|being submitted by process)"):
        job(*line)
    monkeypatch.setattr(terminal, "is_gone", lambda which: True)
    if name in ("slurm", "sky"):
        for command in (line, ("status", "a"), ("stop", "a")):
            with pytest.raises(InputError, match=r"look for the job in `s.* queue|squeue.*a\.json"):
                job(*command)
        return
    assert job("delete", "a") == 0
    assert "state: stopped\n" in capsys.readouterr().out


def test_who_is_told_to_leave_has_to_save_yet(job, local, monkeypatch, tmp_path, capsys):
    kept = a_job(state="running").keep(tmp_path / "jobs")
    monkeypatch.setattr(type(local), "stop", lambda self, seen: Plan())
    assert job("stop", "a") == 0
    said = capsys.readouterr()
    assert "state: running\n" in said.out and "asked to save and exit" in said.err
    assert record.read(tmp_path / "jobs", "a") == kept


@pytest.mark.parametrize("name", submit.MODES)
def test_what_has_ended_stays_so_when_it_is_forgotten_there(tools, tmp_path, name):
    """By the queue, the accounts, the cluster; or its machines were given back."""
    tools.install("kubectl", "gcloud", "squeue", "sacct", "sky")
    tools.answer("get jobset", err="(NotFound)", code=1)
    tools.answer("squeue", err="slurm_load_jobs error: Invalid job id specified", code=1)
    resource = dict(job_id="1", logs=str(tmp_path), context="", namespace="")
    ended = a_job(mode=name, state="done", resource=resource)
    assert submit.MODES[name].look(ended).state == "done"


def test_what_was_known_is_told_when_nobody_answers(job, tools, tmp_path, capsys):
    a_job(mode="slurm", state="running", resource=dict(job_id="1", logs=str(tmp_path))).keep(
        tmp_path / "jobs"
    )
    with pytest.raises(InputError, match="squeue is not installed"):
        job("status", "a")
    assert "state: running\n" in capsys.readouterr().out


def test_a_mode_is_found_by_its_number_or_at_once():
    """What has a queue gets a number; all others know what to delete before they start."""
    numbered = {one.name for one in submit.MODES.values() if one.queue}
    overrides = {
        one.name for one in submit.MODES.values() if type(one).numbered is not mode.Mode.numbered
    }
    assert numbered == overrides
