"""Students in training: with what they begin, what they follow, and which teachers they refuse."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict

from imagen_ft import finetune
from imagen_ft.diffusion.distillation import Consistency, Progressive
from imagen_ft.diffusion.forward_process import add_noise, x0_from_output
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training import train_stage, warm_start
from imagen_ft.training.distilling import Teaching
from imagen_ft.training.training import Training
from launch.errors import InputError
from launch.runtime.config import plain
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.images import to_float
from launch.runtime.run import Run
from launch.runtime.run_record import write_record
from launch.runtime.state import abstract_state, create_state
from tests.imagen_ft import tiny_training
from tests.imagen_ft.training.test_training import NULL, TEXT, batch_of, denoiser
from tests.support import commands
from tests.support.adapted_runs import write_base
from tests.support.slow import first_fast


def leaves_of(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Of eps and a variance."""
    return write_base(epath.Path(tmp_path_factory.mktemp("distilling") / "teacher"))


def get_config(teacher, **fields):
    """Of a student that learns to predict v."""
    config = tiny_training.get_config()
    config.total_steps, config.checkpoint_every, config.evaluate_every = 4, 2, 0
    config.pictures_every, config.best = 0, {}
    config.stage.learned_variance, config.stage.prediction = False, "v"
    config.loss.vlb_weight = 0.0
    of_teacher = dict(teacher=str(teacher), prediction="eps", learned_variance=True)
    config.distill = of_teacher | dict(steps=4) | fields
    return config


def test_a_student_begins_as_its_teacher(teacher):
    training, mesh = Training.of(get_config(teacher)), make_mesh({"data": 1})
    base = warm_start.load_base(training, mesh)
    before = leaves_of(base)
    state = warm_start.create(training, mesh, base)
    own, taught = state.variables["params"], base["params"]
    assert own["conv_out"]["kernel"].shape[-1] == 1 and taught["conv_out"]["kernel"].shape[-1] == 2
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            own["conv_out"][name], np.array(taught["conv_out"][name])[..., :1]
        )
    for name in own.keys() - {"conv_out"}:
        jax.tree.map(np.testing.assert_array_equal, own[name], taught[name])
    # The first step gives the state's memory away.
    jax.tree.map(lambda leaf: leaf.delete(), state)
    jax.tree.map(np.testing.assert_array_equal, leaves_of(base), before)


def taught(method, weight=1.0, decays=None, steps=3):
    """Training of a linear network by another one, after some steps."""
    student, tx = denoiser(low_size=2), optax.sgd(0.1)
    student = dataclasses.replace(student, prediction="v")
    decays = decays or {}
    args = (lambda key: student.init(key, NULL), (jax.random.key(0),), tx, tuple(decays))
    training = Training(
        config=ConfigDict(dict(seed=0, text_drop=0.0, accumulation=2)),
        denoiser=student,
        loss=DiffusionLoss(),
        text_shape=NULL.shape,
        class_names=(),
        tx=tx,
        schedule=lambda step: 0.1,
        decays=decays,
        lora=None,
        frozen={"w": False, "b": False},
        abstract=abstract_state(*args),
        teaching=Teaching("", dataclasses.replace(student, prediction="x0"), method, weight),
    )
    mesh = make_mesh({"data": 1})
    base = {"params": {"w": jnp.float32(0.3), "b": jnp.float32(-0.2)}}
    kept, states, found = leaves_of(base), [], []
    step = training.step(mesh, TEXT, NULL, base)
    with jax.set_mesh(mesh):
        state = create_state(*args, mesh)
        for number in range(steps):
            states.append(jax.tree.map(np.array, state))
            state, metrics = step(state, batch_of(number))
            found.append(jax.device_get(metrics))
    jax.tree.map(np.testing.assert_array_equal, leaves_of(base), kept)
    return training, base, states, found, state


@pytest.mark.parametrize("weight", first_fast([3.0, 1.0]))
def test_an_update_follows_the_teacher(weight):
    """By the formulas, image by image; both see the same text, condition and level."""
    training, base, states, found, after = taught(Progressive(4, 8), weight)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 2))[1]
    batch, schedule = batch_of(2), training.denoiser.schedule
    inputs = training.draw(batch, key)
    text = TEXT[batch["label"]][:, 0, 0] + inputs["level"]

    def network(params, x, t, told):
        told = (told + t)[:, None, None, None]
        return params["w"] * x + params["b"] * told

    def guided(x, t):
        plain = network(base["params"], x, t, text)
        null = network(base["params"], x, t, NULL[0, 0] + inputs["level"])
        return jnp.clip(weight * plain + (1 - weight) * null, -1.0, 1.0)

    x_t = add_noise(to_float(batch["image"]), inputs["eps"], schedule.logsnr(inputs["t"]))
    goal = training.teaching.method.goal(schedule, guided, x_t, inputs)

    def loss_of(params):
        v = network(params, x_t, inputs["t"], text)
        logsnr = schedule.logsnr(inputs["t"])
        off = jnp.square(x0_from_output(v, x_t, logsnr, "v") - goal).mean(axis=(1, 2, 3))
        return (off * jnp.maximum(jnp.exp(logsnr), 1.0)).mean()

    start = states[2].variables["params"]
    loss, slope = jax.value_and_grad(loss_of)(start)
    assert found[2]["loss"] == pytest.approx(float(loss), rel=1e-4)
    for name, value in after.variables["params"].items():
        assert value == pytest.approx(float(start[name] - 0.1 * slope[name]), rel=1e-4)


@pytest.mark.slow
def test_the_average_that_a_student_is_compared_with():
    """Of consistency: its target's weights, and no gradient through them."""
    decays = {"main": lambda n: 0.5, "slow": lambda n: 0.9}
    method = Consistency(6, "ddim", "l2", "slow")
    training, base, states, found, after = taught(method, decays=decays)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 2))[1]
    inputs, text = training.draw(batch_of(2), key), TEXT[batch_of(2)["label"]]
    state = states[2]
    losses = functools.partial(training.losses, inputs=inputs, text=text, null_text=NULL)
    loss, slope = jax.value_and_grad(
        lambda own: losses(own, teacher=base, target=state.ema["slow"])["loss"].mean()
    )(state.variables)
    assert found[2]["loss"] == pytest.approx(float(loss), rel=1e-5)
    main = losses(state.variables, teacher=base, target=state.ema["main"])["loss"].mean()
    assert abs(main - loss) > 1e-3 * loss
    start = state.variables["params"]
    for name, value in after.variables["params"].items():
        assert value == pytest.approx(float(start[name] - 0.1 * slope["params"][name]), rel=1e-4)


@pytest.mark.slow  # Compiles a step and an evaluation.
def test_a_run_that_goes_on_makes_the_same_student(teacher, tmp_path):
    config = get_config(teacher, guidance_weight=2.0, teacher_steps=4)
    before = Run.open(teacher).newest.digest()
    folder = epath.Path(tmp_path) / "student"
    arguments = Training.of(config), make_text_encoder(config.text), make_mesh({})
    train_stage.train_stage(*arguments, folder)
    run = Run.open(folder)
    digest = run.newest.digest()
    assert run.inputs["teacher"] and run.step == 4
    shutil.rmtree(folder / "checkpoints" / "4")
    assert Run.open(folder).step == 2
    train_stage.train_stage(*arguments, folder)
    assert Run.open(folder).newest.digest() == digest and Run.open(folder).step == 4
    assert Run.open(teacher).newest.digest() == before
    # The next round learns from it, and its steps have to halve.
    later = get_config(folder, steps=2, prediction="v", learned_variance=False)
    assert set(warm_start.check_start(Training.of(later))) == {"teacher"}
    later.distill.steps = 4
    with pytest.raises(InputError, match=r"must be 4, .*student was distilled, got 8; "):
        warm_start.check_start(Training.of(later))


def refused(config):
    warm_start.check_start(Training.of(config), make_text_encoder(config.text))


def test_teachers_that_do_not_fit(teacher, tmp_path):
    def changed(**fields):
        config = get_config(teacher)
        for name, value in fields.items():
            section, _, field = name.partition("__")
            config[section][field] = value
        return config

    refused(get_config(teacher))
    for config, message in (
        (
            changed(stage__schedule="cosine"),
            r"teacher: stage\.schedule must be cosine, as in the config, got squaredcos_cap_v2",
        ),
        (
            changed(distill__prediction="x0"),
            r"teacher: stage\.prediction must be x0, as in the config, got nothing",
        ),
        (
            changed(distill__learned_variance=False),
            r"teacher: stage\.learned_variance must be False, as in the config, got True",
        ),
        (changed(text__seed=7), r"text\.seed must be 7, as in the config, got 0"),
        (changed(distill__teacher=str(tmp_path / "none")), "is not a run"),
    ):
        with pytest.raises(InputError, match=message):
            refused(config)
    config = get_config(teacher)
    config.stage.unet.block_out_channels = (16,)
    with pytest.raises(InputError, match=r"unet\.block_out_channels must be \[16\].*got \[8\]"):
        refused(config)


@pytest.mark.slow
def test_a_teacher_of_another_encoder_or_method(teacher, tmp_path):
    run = Run.open(teacher)
    for name, inputs, distill, message in (
        ("text", {"text": "other"}, None, "another text encoder"),
        (
            "kind",
            {},
            dict(teacher="x", method="consistency", steps=18),
            "must not be a consistency model",
        ),
        (
            "steps",
            {},
            dict(teacher="x", steps=32),
            r"the 32 that .*; set config\.distill\.steps=16",
        ),
    ):
        config = plain(run.config) | ({"distill": distill} if distill else {})
        (tmp_path / name).mkdir()
        write_record(epath.Path(tmp_path / name), config, run.inputs | inputs)
        with pytest.raises(InputError, match=message):
            refused(get_config(tmp_path / name))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(teacher=""), r"config\.distill\.teacher must be a run to learn from, got ''"),
        (dict(steps=0), r"config\.distill\.steps must be at least 1, got 0"),
        (dict(method="adversarial"), "method must be one of progressive, consistency, got 'adv"),
        (dict(solver="heun"), "solver is of the method 'consistency', got 'progressive'; leave it"),
        (dict(prediction="noise"), "prediction must be one of eps, x0, v, got 'noise'"),
        (dict(guidance_weight=-1.0), "guidance_weight must be from 0 to .*, got -1.0"),
        (dict(threshold_percentile=0.0), "threshold_percentile must be from 1e-06 to 100, got 0.0"),
        (dict(teacher_steps=12), r"teacher_steps must be twice .*, 8, or 4 to learn another pred"),
        (
            dict(method="consistency", target="slower"),
            r"average of config\.ema .*got 'slower'",
        ),
        (dict(teachers="x"), r"config\.distill has no field 'teachers'"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Training.of(get_config(**{"teacher": "x"} | fields))


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("init_from", "x", r"config\.init_from must be empty with config\.distill, got 'x'"),
        ("lora", dict(rank=2), r"config\.lora must be empty with config\.distill"),
        ("loss", dict(min_snr_gamma=5.0, vlb_weight=0.0), r"loss\.min_snr_gamma must be 0 with"),
    ],
)
def test_what_does_not_go_with_a_teacher(section, value, message):
    config = get_config("x")
    config[section] = value
    with pytest.raises(InputError, match=message):
        Training.of(config)


def test_a_variance_that_no_student_can_learn():
    config = get_config("x")
    config.stage.learned_variance, config.loss.vlb_weight = True, 0.0
    with pytest.raises(InputError, match=r"config\.stage\.learned_variance must be False with con"):
        Training.of(config)


@pytest.mark.slow
def test_a_dry_run_counts_the_teacher_too(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.imagen_ft.training.test_distilling import get_config as make\n"
        "def get_config(arg=''):\n"
        "    return make('gone')\n"
    )
    assert commands.run(finetune.main, config, None, "--dry_run") == 0
    out = capsys.readouterr().out
    training = Training.of(get_config("gone"))
    for name, network in (("unet", training.denoiser), ("teacher", training.teaching.teacher)):
        shapes = network.shapes(training.text_shape)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert f"\n{name}: {count:,} parameters\n" in out
