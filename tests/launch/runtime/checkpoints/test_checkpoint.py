"""A checkpoint is whole and undamaged, or it is not used."""

import contextlib
import errno
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from launch.errors import InputError
from launch.runtime.checkpoints import checkpoint, seals
from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.checkpoints.content_digest import content_digest
from launch.runtime.checkpoints.inference import latest_step
from tests.support.checkpoint_states import (
    RUN_NAME,
    SEAL,
    abstract,
    assert_same_bits,
    damage,
    files,
    largest,
    make_state,
    newest,
    open_run,
    restore,
    save,
)


def test_the_newest_comes_back_bit_by_bit(saved):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "3"]
    assert latest_step(saved) == 3
    assert_same_bits(restore(saved), make_state(3, keep_ema=True))


def test_without_a_moving_average(tmp_path):
    save(tmp_path, 5, keep_ema=False)
    expected = make_state(5, keep_ema=False)
    restored = restore(tmp_path, keep_ema=False)
    assert_same_bits(restored, expected)
    assert restored.ema == {}
    variables = open_run(tmp_path, 5).variables(abstract(expected.variables))
    assert_same_bits(variables, expected.variables)


def test_inference_takes_the_moving_average(saved, monkeypatch):
    expected = make_state(3, keep_ema=True).ema["main"]
    monkeypatch.chdir(saved.parent)  # a relative path will do
    assert_same_bits(open_run(saved.name, 3).variables(abstract(expected)), expected)
    # As do shapes without a place.
    shapes = jax.eval_shape(lambda: expected)
    assert_same_bits(open_run(saved, 3).variables(shapes), expected)


def test_an_unfinished_run(saved):
    with pytest.raises(InputError, match=" is at step 3 of 4"):
        open_run(saved, 4).variables(abstract(make_state(3, keep_ema=True).ema["main"]))


def test_digests_are_of_the_values(saved, tmp_path):
    save(tmp_path / "same", 3)
    assert newest(tmp_path / "same").digest() == newest(saved).digest()
    # The same step with the last bit of one variable of one average changed; nothing else counts.
    state = make_state(3, keep_ema=True)
    kernel = np.array(state.ema["main"]["params"]["kernel"])
    kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(9))
    params = {**state.ema["main"]["params"], "kernel": jnp.asarray(kernel)}
    changed = {**state.ema["main"], "params": params}
    for name, other, same in (
        ("main", state.replace(ema={**state.ema, "main": changed}), ["slow"]),
        ("slow", state.replace(ema={**state.ema, "slow": changed}), ["main"]),
        ("training", state.replace(variables=changed), ["main", "slow"]),
    ):
        with contextlib.closing(
            Checkpoints(tmp_path / name / "checkpoints", RUN_NAME)
        ) as checkpoints:
            checkpoints.save(other)
        for ema in ("main", "slow"):
            equal = newest(tmp_path / name).digest(ema) == newest(saved).digest(ema)
            assert equal is (ema in same)
    with pytest.raises(InputError, match="has no checkpoint"):
        newest(tmp_path / "none").digest()


def test_every_average_can_be_loaded(saved):
    expected = make_state(3, keep_ema=True).ema
    slow = open_run(saved, 3).variables(abstract(expected["slow"]), ema="slow")
    assert_same_bits(slow, expected["slow"])
    assert newest(saved).digest("slow") == content_digest(expected["slow"])
    for ask in (
        lambda: open_run(saved, 3).variables(abstract(expected["slow"]), ema="fast"),
        lambda: newest(saved).digest(ema="fast"),
    ):
        with pytest.raises(
            InputError, match=r"ema must be one of main, slow, got 'fast' \(.*checkpoints/3\)"
        ):
            ask()


def test_what_is_saved_may_be_donated(tmp_path):
    """The training step overwrites the state while it is still being written."""
    numbers = jnp.arange(2**20, dtype=jnp.float32)
    state = make_state(1, keep_ema=False).replace(variables={"params": {"n": numbers}})
    expected = np.array(numbers)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: -x, tree), donate_argnums=0)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", RUN_NAME)) as checkpoints:
        checkpoints.save(state)
        variables = step(state.variables)
        for _ in range(9):
            variables = step(variables)
        jax.block_until_ready(variables)
    loaded = open_run(tmp_path, 1).variables(jax.eval_shape(lambda: variables))
    np.testing.assert_array_equal(loaded["params"]["n"], expected)
    assert newest(tmp_path).digest() == content_digest({"params": {"n": expected}})


def test_a_save_that_has_ended_is_sealed_without_waiting(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", RUN_NAME)) as checkpoints:
        checkpoints.save(make_state(1, keep_ema=False))
        deadline = time.monotonic() + 30
        while latest_step(tmp_path) is None:
            assert time.monotonic() < deadline
            checkpoints.seal_if_saved()
        assert seals.find_fault(tmp_path / "checkpoints" / "1") is None


@pytest.fixture
def gate(monkeypatch):
    """Sealing waits until it is opened."""
    opened, seal = threading.Event(), seals.seal

    def wait_and_seal(*args):
        assert opened.wait(timeout=60)
        seal(*args)

    monkeypatch.setattr(seals, "seal", wait_and_seal)
    yield opened
    opened.set()


def begin_to_seal(checkpoints):
    deadline = time.monotonic() + 30
    while checkpoints._steps._sealing is None:
        assert time.monotonic() < deadline
        checkpoints.seal_if_saved()


def test_the_loop_goes_on_while_files_are_hashed(tmp_path, gate):
    """And the checkpoint before is there until the new one is sealed."""
    save_first = threading.Thread(target=save, args=(tmp_path, 1))
    save_first.start()
    gate.set()
    save_first.join()
    gate.clear()
    with contextlib.closing(
        Checkpoints(tmp_path / "checkpoints", RUN_NAME, max_to_keep=1)
    ) as checkpoints:
        checkpoints.save(make_state(2, keep_ema=False))
        begin_to_seal(checkpoints)
        for _ in range(3):
            checkpoints.seal_if_saved()
        assert latest_step(tmp_path) == 1
        gate.set()
        checkpoints.finish()
        assert latest_step(tmp_path) == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_the_one_before_stays_until_every_process_has_sealed(tmp_path, monkeypatch):
    save(tmp_path, 1)
    seal = seals.seal
    monkeypatch.setattr(seals, "seal", lambda folder, _, __, facts: seal(folder, 0, 2, facts))
    with contextlib.closing(
        Checkpoints(tmp_path / "checkpoints", RUN_NAME, max_to_keep=1)
    ) as checkpoints:
        checkpoints.save(make_state(2, keep_ema=True))
        checkpoints.finish()
    assert latest_step(tmp_path) == 1
    seal(tmp_path / "checkpoints" / "2", 1, 2, {})
    assert latest_step(tmp_path) == 2


@pytest.mark.parametrize("noticed", ["by the next save", "by finish", "by close"])
def test_a_disk_that_fills_up_while_the_seal_is_written(tmp_path, monkeypatch, noticed):
    def full(*args):
        raise OSError(errno.ENOSPC, "full", "here")

    save(tmp_path, 1, keep_ema=False)
    checkpoints = Checkpoints(tmp_path / "checkpoints", RUN_NAME, max_to_keep=1)
    monkeypatch.setattr(seals, "seal", full)
    checkpoints.save(make_state(2, keep_ema=False))
    with pytest.raises(OSError, match="full"):
        if noticed == "by the next save":
            checkpoints.save(make_state(3, keep_ema=False))
        elif noticed == "by finish":
            checkpoints.finish()
        else:
            checkpoints.close()
    checkpoints.close()
    assert latest_step(tmp_path) == 1


def test_a_new_run_has_none(tmp_path):
    assert restore(tmp_path) is None
    assert latest_step(tmp_path) is None


def test_saving_a_step_again_is_an_error(run):
    checkpoints = Checkpoints(run / "checkpoints", RUN_NAME)
    with pytest.raises(Exception, match="3"):
        checkpoints.save(make_state(3, keep_ema=True))
    checkpoints.close()


def test_a_disk_that_fills_up_while_orbax_writes(tmp_path, monkeypatch):
    wait = ocp.CheckpointManager.wait_until_finished

    def fail_once(manager):
        monkeypatch.undo()
        wait(manager)
        raise ValueError('RESOURCE_EXHAUSTED: Error writing "params": No space left on device')

    with pytest.raises(OSError) as error:
        with contextlib.closing(Checkpoints(tmp_path / "checkpoints", RUN_NAME)) as checkpoints:
            checkpoints.save(make_state(1, keep_ema=False))
            monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail_once)
            checkpoints.save(make_state(2, keep_ema=False))
    assert error.value.errno == errno.ENOSPC and "checkpoints" in error.value.filename
    assert latest_step(tmp_path) is None  # closing has sealed nothing


def test_every_file_is_checked(run):
    folder = run / "checkpoints" / "3"
    names = files(folder)
    assert len(names) > 5
    assert seals.find_fault(folder) is None
    for path in names:
        whole = path.read_bytes()
        damage(path)
        fault = seals.find_fault(folder)
        assert fault is not None and f"{path} is damaged" in fault
        path.unlink()
        missing = f"{folder} is not sealed ({SEAL} is missing)"
        assert seals.find_fault(folder) == (missing if path.name == SEAL else f"{path} is missing")
        path.write_bytes(whole)
    assert seals.find_fault(folder) is None
    # Another process has begun to write its part.
    (folder / ".digests_1_of_2.json.0123.tmp").write_bytes(b"{")
    assert seals.find_fault(folder) is None
    (folder / "inference" / "more").write_bytes(b"")
    assert "more is not one of the checkpoint's files" in seals.find_fault(folder)


def test_a_seal_of_several_processes(run):
    """Each has hashed its share, and the same or another number of them checks it."""
    folder = run / "checkpoints" / "3"
    whole = seals.read_facts(folder)
    seals.break_seal(folder)
    for index in range(3):
        assert not seals.is_sealed(folder) and "not sealed" in seals.find_fault(folder)
        seals.seal(folder, index, 3, whole if index == 0 else {})
    assert seals.is_sealed(folder) and seals.read_facts(folder) == whole
    assert latest_step(run) == 3
    for path in files(folder):
        data = path.read_bytes()
        damage(path)
        for count in (1, 2, 3):
            faults = [seals.find_fault(folder, index, count) for index in range(count)]
            # Everyone reads the seals, and one the file.
            every = path.name.startswith("digests_")
            assert len([fault for fault in faults if fault]) == (count if every else 1)
            assert all(f"{path} is damaged" in fault for fault in faults if fault)
        path.write_bytes(data)
    (folder / "digests_1_of_3.json").unlink()
    assert latest_step(run) == 2


@pytest.mark.parametrize(
    "victim",
    [largest, lambda folder: folder / "_CHECKPOINT_METADATA"],
    ids=["arrays", "metadata"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, capsys, victim):
    path = victim(run / "checkpoints" / "3")
    damage(path)
    with pytest.raises(InputError, match=f"{path} is damaged"):
        open_run(run, 3).variables(abstract(make_state(3, keep_ema=True).ema["main"]))
    assert_same_bits(restore(run), make_state(2, keep_ema=True))
    assert f"{path} is damaged" in capsys.readouterr().err
    # It is kept for whoever wants to know, and its step can be saved again.
    assert (run / "damaged_checkpoint_3").is_dir()
    save(run, 3)
    assert_same_bits(restore(run), make_state(3, keep_ema=True))


def test_damaged_digests_are_no_reason_to_stop(run, capsys):
    path = run / "checkpoints" / "3" / SEAL
    path.write_bytes(b"z" + path.read_bytes()[1:])
    assert_same_bits(restore(run), make_state(2, keep_ema=True))
    assert str(path) in capsys.readouterr().err


def test_an_unsealed_checkpoint_is_removed(run, capsys):
    (run / "checkpoints" / "3" / SEAL).unlink()
    assert latest_step(run) == 2
    assert_same_bits(restore(run), make_state(2, keep_ema=True))
    assert not (run / "checkpoints" / "3").exists()
    assert not (run / "damaged_checkpoint_3").exists()
    assert f"/checkpoints/3 is not sealed ({SEAL} is missing)" in capsys.readouterr().err
    save(run, 3)
    assert latest_step(run) == 3


def test_what_a_killed_save_leaves_is_removed(run):
    left = run / "checkpoints" / "4.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    assert_same_bits(restore(run), make_state(3, keep_ema=True))
    assert not left.exists()


def test_only_unsealed_ones_are_a_new_run(run):
    for step in "23":
        (run / "checkpoints" / step / SEAL).unlink()
    assert restore(run) is None
    # They may have lost no more than their seals, and are all that is left.
    assert all((run / f"damaged_checkpoint_{step}" / "training").is_dir() for step in (2, 3))
    with pytest.raises(InputError, match="has no checkpoint"):
        open_run(run, 3).variables(None)


def test_all_damaged(run):
    for step in "23":
        damage(largest(run / "checkpoints" / step))
    for _ in range(2):  # and it stays so: nothing is thrown away
        with pytest.raises(InputError, match=r"every checkpoint is damaged: .*/3/.* is damaged"):
            restore(run)


def test_variables_that_were_not_trained_here(tmp_path, monkeypatch):
    """In their own types; read in others; full disks are told as such."""
    variables = make_state(0, keep_ema=False).variables
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32", "bfloat16"}
    checkpoint.save_inference(tmp_path, RUN_NAME, variables, step=2)
    shapes = newest(tmp_path).shapes()
    assert shapes == jax.eval_shape(lambda: variables)
    assert_same_bits(open_run(tmp_path, 2).variables(shapes), variables)
    wider = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), shapes)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    assert_same_bits(open_run(tmp_path, 2).variables(wider), expected)
    # The digest is that of a run with the same values, and damage is noticed.
    save(tmp_path / "run", 0, keep_ema=False)
    assert newest(tmp_path / "run").digest() == newest(tmp_path).digest()
    damage(largest(tmp_path / "checkpoints" / "2"))
    with pytest.raises(InputError, match="is damaged"):
        open_run(tmp_path, 2).variables(shapes)

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError) as error:
        checkpoint.save_inference(tmp_path / "full", RUN_NAME, variables)
    assert error.value.errno == errno.ENOSPC
    assert latest_step(tmp_path / "full") is None


def test_a_missing_run(tmp_path):
    with pytest.raises(InputError, match="none has no checkpoint"):
        open_run(tmp_path / "none", 3).variables(None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            dict(kernel=jnp.zeros((3, 3))),
            r"params\.kernel must have the model's shape \(3, 3\), got \(3, 2\)",
        ),
        (dict(bias=jnp.zeros(2)), r"params\.bias must have the model's shape \(2,\), got missing"),
    ],
    ids=["shape", "name"],
)
def test_another_model(saved, change, said):
    other = make_state(3, keep_ema=True).ema["main"]
    other["params"] |= change
    with pytest.raises(InputError, match=said) as error:
        open_run(saved, 3).variables(abstract(other))
    assert "\n" not in str(error.value)


def test_a_part_of_the_model(saved):
    other = make_state(3, keep_ema=True).ema["main"]
    del other["params"]["kernel"]
    with pytest.raises(
        InputError, match=r"params\.kernel must have the model's shape missing, got \(3, 2\)"
    ):
        open_run(saved, 3).variables(abstract(other))
