"""The checkpoint of the best evaluation: which it is, also after restarts and damage."""

import contextlib
import shutil

import pytest

from launch.errors import InputError
from launch.runtime.checkpoints import seals
from launch.runtime.checkpoints.checkpoint import Best, Checkpoints
from launch.runtime.checkpoints.content_digest import content_digest
from tests.support.checkpoint_states import (
    RUN_NAME,
    abstract,
    assert_same_bits,
    damage,
    largest,
    make_state,
    newest,
    open_run,
)

# Validation losses by step; 6 is no better than 4, as it is the same.
LOSSES = {2: 0.5, 4: 0.25, 5: float("nan"), 6: 0.25, 8: 0.125, 10: 0.75}
STEPS = list(LOSSES)


def offer(workdir, steps, mode="min", losses=LOSSES):
    """Offers states of these steps, as one start of a run; which were taken."""
    with contextlib.closing(Best(workdir / "best", RUN_NAME, "validation_loss", mode)) as best:
        taken = [
            step
            for step in steps
            if best.offer(make_state(step, keep_ema=True), {"validation_loss": losses[step]})
        ]
        best.finish()
    return taken


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "best").iterdir())


def facts(workdir, step):
    return seals.read_facts(workdir / "best" / str(step))


@pytest.mark.parametrize(
    ("mode", "taken"), [("min", [2, 4, 8]), ("max", [2, 10])], ids=["min", "max"]
)
def test_the_best_is_kept(tmp_path, mode, taken):
    assert offer(tmp_path, STEPS, mode) == taken
    assert kept(tmp_path) == taken[-1:]
    found = facts(tmp_path, taken[-1])
    assert found["score"] == LOSSES[taken[-1]]
    assert (found["metric"], found["mode"]) == ("validation_loss", mode)


def test_the_best_can_be_loaded(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", RUN_NAME)) as checkpoints:
        checkpoints.save(make_state(10, keep_ema=True))
    with pytest.raises(InputError, match=r"has no best checkpoint; train with config\.best"):
        open_run(tmp_path, 10).variables(None, best=True)
    offer(tmp_path, STEPS)
    expected = make_state(8, keep_ema=True).ema
    for ema in ("main", "slow"):
        found = open_run(tmp_path, 10).variables(abstract(expected[ema]), ema=ema, best=True)
        assert_same_bits(found, expected[ema])
        assert newest(tmp_path, best=True).digest(ema) == content_digest(expected[ema])
    assert not (tmp_path / "best" / "8" / "training").exists()  # it is to sample with
    # How far the run has come is another matter.
    with pytest.raises(InputError, match="step 10 of 12"):
        open_run(tmp_path, 12).variables(abstract(expected["main"]), best=True)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("until", "resumed"),
    [(2, 4), (8, 5), (8, 10), (6, 2), (10, 8), (10, 10)],
    ids=lambda step: str(step),
)
def test_a_resumed_run_ends_with_the_same_best(tmp_path, mode, until, resumed):
    """It was killed after one step, and goes on with an earlier one or the next."""
    offer(tmp_path, [step for step in STEPS if step <= until], mode)
    offer(tmp_path, [step for step in STEPS if step >= resumed], mode)
    assert kept(tmp_path) == [8 if mode == "min" else 10]


def test_scores_of_steps_that_are_not_reached_yet_do_not_count(tmp_path):
    offer(tmp_path, [2, 8])
    assert offer(tmp_path, [4]) == [4]
    assert kept(tmp_path) == [4]
    # Nor that of the very step, if it comes out otherwise on another mesh.
    assert offer(tmp_path, [4], losses={4: 0.75}) == [4]
    assert facts(tmp_path, 4)["score"] == 0.75


def test_scores_of_another_kind_do_not_count(tmp_path):
    offer(tmp_path, [2], "min")
    assert offer(tmp_path, [4], "max") == [4]  # 0.25 after 0.5
    state, scalars = make_state(6, keep_ema=True), {"accuracy": 0.1}
    with contextlib.closing(Best(tmp_path / "best", RUN_NAME, "accuracy", "max")) as best:
        assert best.offer(state, scalars)


def test_the_old_best_goes_when_the_new_one_is_sealed(tmp_path, monkeypatch):
    offer(tmp_path, [2])

    def full(*args):
        raise OSError("full")

    with contextlib.closing(Best(tmp_path / "best", RUN_NAME, "validation_loss")) as best:
        with monkeypatch.context() as patch:
            patch.setattr(seals, "seal", full)
            assert best.offer(make_state(4, keep_ema=True), {"validation_loss": 0.25})
            with pytest.raises(OSError, match="full"):
                best.finish()
    assert kept(tmp_path) == [2, 4] and not seals.is_sealed(tmp_path / "best" / "4")
    # The save that was cut off does not count in the next start, either.
    assert offer(tmp_path, [6]) == [6]
    assert kept(tmp_path) == [6]


def test_a_damaged_best_is_named_and_does_not_count(tmp_path, capsys):
    offer(tmp_path, [2])
    shutil.copytree(tmp_path / "best" / "2", tmp_path / "two")
    offer(tmp_path, [4])
    shutil.move(tmp_path / "two", tmp_path / "best" / "2")
    path = largest(tmp_path / "best" / "4")
    damage(path)
    assert offer(tmp_path, [6], losses={6: 0.375}) == [6]  # better than 2, not than 4
    assert f"{path} is damaged" in capsys.readouterr().err
    assert kept(tmp_path) == [6] and (tmp_path / "damaged_best_4").is_dir()


def test_wrong_settings(tmp_path):
    with pytest.raises(InputError, match=r"config\.best\.mode must be 'min' or 'max', got 'least'"):
        Best(tmp_path / "best", RUN_NAME, "validation_loss", "least")
    with contextlib.closing(Best(tmp_path / "best", RUN_NAME, "accuracy", "max")) as best:
        with pytest.raises(InputError, match=r"must be one of a, b, got 'accuracy'$"):
            best.offer(make_state(1, keep_ema=False), {"b": 1.0, "a": 2.0})
