"""Checkpoints that cannot be read, are not where they belong, or were not written whole."""

import contextlib
import errno
import shutil
import types

import jax.numpy as jnp
import pytest
from etils import epath

from launch.errors import Failed, InputError
from launch.runtime.checkpoints import checkpoint, sealed_steps, seals
from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.checkpoints.inference import latest_step
from tests.support.checkpoint_states import (
    RUN_NAME,
    SEAL,
    abstract,
    assert_same_bits,
    make_state,
    newest,
    open_run,
    restore,
    save,
)


def seal_is_a_folder(folder, _):
    (folder / SEAL).unlink()
    (folder / SEAL).mkdir()


def seal_is_a_list(folder, _):
    (folder / SEAL).write_text("[]")


def seal_is_deep(folder, _):
    (folder / SEAL).write_text("[" * 100_000)


def seal_is_a_dangling_link(folder, _):
    (folder / SEAL).unlink()
    (folder / SEAL).symlink_to("nowhere")


def file_is_a_dangling_link(folder, _):
    (folder / "_CHECKPOINT_METADATA").unlink()
    (folder / "_CHECKPOINT_METADATA").symlink_to("nowhere")


def disk_fails(folder, monkeypatch):
    sha256 = seals.sha256

    def read(path):
        if folder in epath.Path(path).parents:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256(path)

    monkeypatch.setattr(seals, "sha256", read)


def folder_is_locked(folder, monkeypatch):
    share_names = seals._share_names

    def names(path):
        if path == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return share_names(path)

    monkeypatch.setattr(seals, "_share_names", names)


def of_another_step(folder, _):
    shutil.rmtree(folder)
    (folder.parent / "1").rename(folder)


def of_another_run(folder, _):
    shutil.rmtree(folder)
    other = folder.parents[1] / "other"
    with contextlib.closing(Checkpoints(other / "checkpoints", "another run")) as checkpoints:
        checkpoints.save(make_state(3, keep_ema=True))
    (other / "checkpoints" / "3").rename(folder)


FAULTS = {
    seal_is_a_folder: "cannot be read",
    seal_is_a_list: "is damaged",
    seal_is_deep: "is damaged",
    seal_is_a_dangling_link: "cannot be read",
    file_is_a_dangling_link: "cannot be read",
    disk_fails: r"cannot be read \(Input/output error\)",
    folder_is_locked: r"cannot be read \(Permission denied\)",
    of_another_step: "step must be 3, got 1",
    of_another_run: "run/checkpoints/3: run must be a run, got another run",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_one_that_cannot_be_used_is_named_and_the_one_before_is(run, fault, monkeypatch, capsys):
    if fault is of_another_step:
        with contextlib.closing(Checkpoints(run / "checkpoints", RUN_NAME, 3)) as checkpoints:
            checkpoints.save(make_state(1, keep_ema=True))
    fault(run / "checkpoints" / "3", monkeypatch)
    with pytest.raises(InputError, match=FAULTS[fault]):
        open_run(run, 3).variables(abstract(make_state(3, keep_ema=True).ema["main"]))
    if fault not in (file_is_a_dangling_link, disk_fails):
        with pytest.raises(InputError, match=FAULTS[fault]):
            newest(run).digest()
    assert_same_bits(restore(run), make_state(2, keep_ema=True))
    err = capsys.readouterr().err
    assert err.startswith("checkpoint skipped: ") and err.count("\n") == 1
    assert (run / "damaged_checkpoint_3").is_dir()
    monkeypatch.undo()
    save(run, 3)
    assert_same_bits(restore(run), make_state(3, keep_ema=True))


def test_what_cannot_be_read_pushes_out_no_sound_one(run):
    (run / "checkpoints" / "9").touch()
    with contextlib.closing(Checkpoints(run / "checkpoints", RUN_NAME, 1)) as checkpoints:
        checkpoints.save(make_state(4, keep_ema=True))
        checkpoints.finish()
    assert seals.find_fault(run / "checkpoints" / "4") is None


def test_folders_that_are_no_steps_are_left_alone(run):
    for name in ("0024", "٣", "x"):
        (run / "checkpoints" / name).mkdir()
    assert latest_step(run) == 3
    assert_same_bits(restore(run), make_state(3, keep_ema=True))
    save(run, 24)
    assert latest_step(run) == 24 and (run / "checkpoints" / "0024").is_dir()


@pytest.mark.parametrize("lost", ["manifest.ocdbt", "an array"])
def test_what_was_not_written_whole_is_not_sealed(tmp_path, monkeypatch, lost):
    """Orbax calls it saved, for whatever reason."""
    variables = {"params": {"kernel": jnp.ones(3)}}
    saved_args = checkpoint.orbax_options.save_args

    def lose(items):
        less = {name: {"params": {}} for name in items}
        return saved_args(less if lost == "an array" else items)

    def lose_file(folder, num_arrays):
        (folder / "inference" / "manifest.ocdbt").unlink(missing_ok=lost == "an array")
        check_whole(folder, num_arrays)

    check_whole = checkpoint.check_whole
    monkeypatch.setattr(checkpoint.orbax_options, "save_args", lose)
    monkeypatch.setattr(checkpoint, "check_whole", lose_file)
    with pytest.raises(Failed, match=r"is incomplete: .* it is skipped"):
        checkpoint.save_inference(tmp_path, RUN_NAME, variables, step=1)
    assert latest_step(tmp_path) is None


def test_a_save_that_was_not_written_whole_is_not_sealed(tmp_path, monkeypatch):
    check_whole = sealed_steps.check_whole

    def lose_file(folder, num_arrays):
        (folder / "training" / "manifest.ocdbt").unlink()
        check_whole(folder, num_arrays)

    monkeypatch.setattr(sealed_steps, "check_whole", lose_file)
    with pytest.raises(Failed, match=r"training/manifest\.ocdbt is missing; it is skipped"):
        save(tmp_path, 1)
    assert latest_step(tmp_path) is None


def test_a_save_for_which_there_is_no_room_is_not_begun(run, monkeypatch):
    usage = types.SimpleNamespace(free=1000, total=10**9)
    monkeypatch.setattr(sealed_steps.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError) as full:
        save(run, 4)
    assert full.value.errno == errno.ENOSPC and full.value.filename == str(run / "checkpoints")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
    usage.free = usage.total = 0  # a mount that does not know
    save(run, 4)
    assert latest_step(run) == 4


@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "manifest.ocdbt"])
def test_damaged_shapes_are_named(run, name):
    path = run / "checkpoints" / "3" / "inference" / name
    path.write_bytes(b"\xff" + path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name} is damaged"):
        newest(run).shapes()
