"""The training loop on a linear model: what is cut off ends as if nothing had happened."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict

from input_pipeline.files import InputError
from launch.runtime import app, checkpoint
from launch.runtime.loop import check_training, fit
from launch.runtime.mesh import make_mesh
from launch.runtime.metrics import column, read_metrics
from launch.runtime.state import abstract_state, create_state

TX = optax.sgd(0.1, momentum=0.9)
CONFIG = ConfigDict(dict(total_steps=8, log_every=2, checkpoint_every=3, evaluate_every=4))


class PowerCut(Exception):
    pass


def batches(start, stop, cut=None, nan=None):
    """Batch k is a function of k; the one numbered `cut` does not come."""
    for k in range(start, stop):
        if k == cut:
            raise PowerCut
        rng = np.random.default_rng(k)
        x = rng.normal(size=(4, 3)).astype(np.float32)
        yield {"x": x * np.float32(np.nan if k == nan else 1), "y": x.sum(axis=1)}


def init(key):
    return {"params": {"w": jax.random.normal(key, (3,))}}


def loss_of(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, batch):
    loss, grads = jax.value_and_grad(loss_of)(state.variables["params"], batch)
    return state.update(grads, TX, ema_decay=0.9), {"loss": loss}


def evaluate(state):
    return {"distance": float(jnp.abs(state.inference_variables["params"]["w"] - 1).max())}


def train(workdir, train_step=train_step, config=CONFIG, **faults):
    mesh = make_mesh({"data": -1})
    args = (init, (jax.random.key(0),), TX, True)
    with jax.set_mesh(mesh):
        return fit(
            workdir=epath.Path(workdir),
            config=config,
            mesh=mesh,
            abstract=abstract_state(*args),
            create=functools.partial(create_state, *args, mesh),
            train_step=train_step,
            batches=functools.partial(batches, **faults),
            evaluate=evaluate,
            label="toy",
        )


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def metrics(workdir):
    return [
        {name: value for name, value in line.items() if name != "steps_per_second"}
        for line in read_metrics(workdir)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, leaves(train(workdir))


def assert_as_whole(whole, workdir, state):
    for ours, theirs in zip(leaves(state), whole[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert metrics(workdir) == metrics(whole[0])


def test_what_a_run_leaves(whole):
    workdir, _ = whole
    # Losses at every second step and before a checkpoint, evaluations behind them.
    lines = [(line["step"], *(set(line) - {"step"})) for line in metrics(workdir)]
    assert lines == [
        (2, "loss"),
        (3, "loss"),
        (4, "loss"),
        (4, "distance"),
        (6, "loss"),
        (8, "loss"),
        (8, "distance"),
    ]
    assert all(rate > 0 for rate in column(read_metrics(workdir), "steps_per_second")[1])
    steps, losses = column(metrics(workdir), "loss")
    assert steps.tolist() == [2, 3, 4, 6, 8] and len(set(losses)) == 5
    assert column(metrics(workdir), "nothing")[0].size == 0
    folders = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert folders == ["6", "8"] and checkpoint.latest_step(workdir) == 8
    assert any(path.name.startswith("events.out.tfevents") for path in workdir.iterdir())


@pytest.mark.parametrize("cut", [0, 2, 3, 5, 7])
def test_cut_off_and_run_again(whole, tmp_path, cut):
    with pytest.raises(PowerCut):
        train(tmp_path, cut=cut)
    assert checkpoint.latest_step(tmp_path) == {0: None, 2: None, 3: 3, 5: 3, 7: 6}[cut]
    assert_as_whole(whole, tmp_path, train(tmp_path))


@pytest.mark.parametrize("cut", [4, 7])
def test_cut_off_before_the_checkpoint_is_sealed(whole, tmp_path, cut):
    """As kill -9 leaves it: the newest checkpoint without digests, and half a line of metrics."""
    with pytest.raises(PowerCut):
        train(tmp_path, cut=cut)
    newest = tmp_path / "checkpoints" / str(checkpoint.latest_step(tmp_path))
    (newest / checkpoint.DIGESTS).unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert_as_whole(whole, tmp_path, train(tmp_path))


def test_resuming_shows_where_it_is(tmp_path, capsys):
    with pytest.raises(PowerCut):
        train(tmp_path, cut=7)
    capsys.readouterr()
    train(tmp_path)
    shown = capsys.readouterr().err.replace("\n", "\r").split("\r")
    shown = [line for line in shown if line.startswith("toy: ")]
    assert " 6/8 " in shown[0] and " 8/8 " in shown[-1] and "loss=" in shown[-1]


def test_a_complete_run_is_not_trained_again(whole, capsys):
    workdir, state = whole

    def never(*args):
        raise AssertionError("trained again")

    def contents():
        paths = (path for path in workdir.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = contents()
    again = train(workdir, train_step=never, cut=8)
    for ours, theirs in zip(leaves(again), state, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert contents() == before
    assert "toy" not in capsys.readouterr().err


def test_a_longer_run_goes_on(whole, tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.total_steps = 3
    train(tmp_path, config=config)
    assert checkpoint.latest_step(tmp_path) == 3
    state = train(tmp_path)
    for ours, theirs in zip(leaves(state), whole[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_intervals_of_zero(tmp_path):
    config = ConfigDict(dict(total_steps=3, log_every=0, checkpoint_every=0, evaluate_every=0))
    train(tmp_path, config=config)
    assert [(line["step"], "loss" in line) for line in metrics(tmp_path)] == [(3, True), (3, False)]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_diverged_run_keeps_the_checkpoints_before(whole, tmp_path):
    # Batch 4 spoils step 5, which nobody looks at; step 6 is looked at before it is saved.
    with pytest.raises(app.Diverged, match=f"{tmp_path}: the loss of step 6 is nan") as error:
        train(tmp_path, nan=4)
    assert "\n" not in str(error.value) and "batch 5; " in str(error.value)
    assert checkpoint.latest_step(tmp_path) == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert metrics(tmp_path) == [line for line in metrics(whole[0]) if line["step"] <= 4]
    assert_as_whole(whole, tmp_path, train(tmp_path))


def test_diverged_right_after_a_checkpoint(tmp_path, capsys):
    config_file = tmp_path / "config.py"
    config_file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({CONFIG.to_dict()!r})\n"
    )
    argv = ["task", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as ended:
        app.run(lambda args: train(args.workdir, config=args.config, nan=3), "", argv=argv)
    assert ended.value.code == 1
    # The line stands by itself, below the progress bar.
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == "" and lines[-2].startswith("error: ")
    assert "the loss of step 4 is nan" in lines[-2]
    # The checkpoint of step 3 was still being written when step 4 failed.
    assert checkpoint.latest_step(tmp_path / "run") == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(total_steps=0), r"config\.total_steps=0: at least 1"),
        (dict(batch_size=0), r"config\.batch_size=0: at least 1"),
        (dict(seed=-1), r"config\.seed=-1: at least 0"),
        (dict(seeds=0), r"config\.seeds=0: at least 1"),
    ],
)
def test_numbers_that_cannot_work(changes, said):
    config = dict(total_steps=1, batch_size=1)
    check_training(ConfigDict(config), make_mesh({"data": -1}))
    with pytest.raises(InputError, match=said):
        check_training(ConfigDict(config | changes), make_mesh({"data": -1}))


def test_a_crash_while_writing_metrics(tmp_path):
    whole_line = json.dumps({"step": 1, "loss": 0.5})
    (tmp_path / "metrics.jsonl").write_text(whole_line + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
