"""A run directory has one config, one process, known inputs."""

import fcntl
import os

import pytest
from etils import epath
from ml_collections import ConfigDict

from launch.errors import InputError
from launch.files import read_sealed
from launch.runtime.locks import lock
from launch.runtime.run import Run
from launch.runtime.workdir import claim_workdir


def small_config(**changes):
    fields = dict(steps=3, sizes=(1, 2), model=dict(width=4), log_every=2, mesh=dict(data=1))
    return ConfigDict(fields | changes)


def test_it_belongs_to_one_config(tmp_path):
    workdir = epath.Path(tmp_path) / "runs" / "a"
    claim_workdir(workdir, small_config())
    assert read_sealed(workdir / "config.json") == dict(
        steps=3, sizes=[1, 2], model=dict(width=4), log_every=2, mesh=dict(data=1)
    )
    claim_workdir(workdir, small_config())  # tuples have become lists, that is the same
    claim_workdir(workdir, small_config(log_every=5, mesh=dict(data=8, fsdp=1)))
    written, reordered = (workdir / "config.json").read_bytes(), epath.Path(tmp_path) / "b"
    claim_workdir(reordered, ConfigDict(dict(reversed(small_config().items()))))
    assert (reordered / "config.json").read_bytes() == written
    for other, said in (
        (small_config(steps=4), "steps must be 3, as when"),
        (
            small_config(sizes=(1, 3)),
            r"sizes must be \[1, 2\], as when .*runs/a was started, got \[1, 3\]",
        ),
        (small_config(model=dict(width=5)), r"model\.width must be 4, as when .* got 5"),
        (small_config(rate=0.1), r"rate must be nothing, as when .* got 0\.1"),
        (
            ConfigDict(dict(steps=3, sizes=(1, 2))),
            r"model\.width must be 4, as when .*runs/a was started, got nothing",
        ),
    ):
        with pytest.raises(InputError, match=said):
            claim_workdir(workdir, other)
    assert Run.open(workdir).config.steps == 3
    assert Run.open(workdir).config.log_every == 2


def test_of_long_lists_the_first_difference_is_told(tmp_path):
    names = [f"class {number}" for number in range(1000)]
    claim_workdir(epath.Path(tmp_path), small_config(names=names))
    for other, said in (
        (
            [*names[:7], "owl", *names[8:]],
            r"names\[7\] must be class 7, as when .* was started, got owl",
        ),
        (names[:-1], r"names\[999\] must be class 999, .* got nothing; choose"),
    ):
        with pytest.raises(InputError, match=said):
            claim_workdir(epath.Path(tmp_path), small_config(names=other))


def test_it_belongs_to_what_it_is_made_from(tmp_path):
    claim_workdir(epath.Path(tmp_path), small_config(), {"init_from": "abc"})
    claim_workdir(epath.Path(tmp_path), small_config(), {"init_from": "abc"})
    for inputs, said in (
        (
            {"init_from": "abd"},
            r"init_from must be abc, .* got abd \(checksums of .*upright.*\); choose another",
        ),
        (
            {},
            r"init_from must be .*got nothing \(checksums of .*upright",
        ),
        (
            None,
            r"init_from must be .*got nothing \(checksums of .*upright",
        ),
        ({"init_from": "abc", "synthetic": "e"}, "synthetic must be nothing, .* got e"),
    ):
        with pytest.raises(InputError, match=said):
            claim_workdir(epath.Path(tmp_path), small_config(), inputs)


def test_it_is_no_synthetic_set(tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match="is a synthetic set; choose another --workdir"):
        claim_workdir(epath.Path(tmp_path), small_config())
    assert not (tmp_path / "config.json").exists()


def test_it_is_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--workdir must be a folder, got the file"):
        claim_workdir(epath.Path(tmp_path / "file"), small_config())


def test_it_has_one_process(tmp_path):
    workdir = epath.Path(tmp_path)
    other = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    for claim in (lock, lambda workdir: claim_workdir(workdir, small_config())):
        with pytest.raises(InputError, match="in use by another process"):
            claim(workdir)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    os.close(other)
    claim_workdir(workdir, small_config())
    lock(workdir)  # it is ours already
    again = os.open(tmp_path / ".lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)


def test_a_missing_run(tmp_path):
    with pytest.raises(InputError, match="none is not a run"):
        Run.open(tmp_path / "none")


@pytest.mark.parametrize("text", ["[]", "null", "3"])
@pytest.mark.parametrize("name", ["config.json", "inputs.json"])
def test_a_file_that_holds_no_object(tmp_path, name, text):
    workdir = epath.Path(tmp_path)
    claim_workdir(workdir, small_config(), {"text": "abc"})
    (workdir / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} must be a JSON object"):
        claim_workdir(workdir, small_config(), {"text": "abc"})
    with pytest.raises(InputError, match=f"{name} must be a JSON object"):
        assert Run.open(workdir).inputs


@pytest.mark.parametrize("name", ["run[1]", "run*", "wha?", "back\\slash"])
def test_a_path_that_orbax_cannot_take(tmp_path, name):
    with pytest.raises(InputError, match="checkpoints cannot be saved under a path with"):
        claim_workdir(epath.Path(tmp_path / name / "run"), small_config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["checkpoints", "seed_3/checkpoints", "best"])
def test_checkpoints_without_a_config(tmp_path, folder):
    workdir = epath.Path(tmp_path)
    claim_workdir(workdir, small_config())
    (workdir / "config.json").unlink()
    (workdir / folder).mkdir(parents=True)
    claim_workdir(workdir, small_config(steps=4))  # no checkpoint: nothing was trained
    (workdir / "config.json").unlink()
    (workdir / folder / "7").mkdir()
    with pytest.raises(InputError, match=r"has checkpoints, but no config\.json; restore it"):
        claim_workdir(workdir, small_config())
    assert not (workdir / "config.json").exists()


@pytest.mark.parametrize("name", ["config.json", "inputs.json"])
def test_a_record_that_was_changed_or_lost(tmp_path, name):
    workdir = epath.Path(tmp_path)
    claim_workdir(workdir, small_config(), {"text": "abc"})
    written = (workdir / name).read_bytes()
    for changed in (written.replace(b"3", b"2", 1), written.replace(b"abc", b"abd", 1)):
        (workdir / name).write_bytes(changed)
        for use in (
            lambda: claim_workdir(workdir, small_config(), {"text": "abc"}),
            lambda: Run.open(workdir),
        ):
            if changed != written:
                with pytest.raises(InputError, match=f"{name} is damaged"):
                    use()
    (workdir / "inputs.json").unlink()
    with pytest.raises(InputError, match=r"inputs\.json: no such file"):
        claim_workdir(workdir, small_config(), {"text": "abc"})


def test_runs_have_names_of_their_own(tmp_path):
    """Of what they were made from; what may change from start to start changes no name."""
    config, inputs = small_config(), {"text": "abc"}
    names = [
        claim_workdir(epath.Path(tmp_path) / name, *record)
        for name, record in {
            "a": (config, inputs),
            "b": (config, inputs),
            "c": (small_config(steps=4), inputs),
            "d": (config, {"text": "abd"}),
        }.items()
    ]
    assert names[0] == names[1] and len(set(names)) == 3
    assert claim_workdir(epath.Path(tmp_path) / "a", small_config(log_every=5), inputs) == names[0]
    assert Run.open(tmp_path / "a").run_name == names[0]
