"""Adapters that are trained in the place of a network, and the network that they make."""

import dataclasses
import json
import shutil

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict

from imagen_ft import finetune, weights
from imagen_ft.cascade import Cascade
from imagen_ft.cascade.loading import load_stages
from imagen_ft.cascade.stage_weights import digest_of, variables_of
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import Cosine
from imagen_ft.models.unet import Context
from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training import train_stage
from imagen_ft.training.image_losses import draw_inputs, image_losses
from imagen_ft.training.training import Training
from imagen_ft.weights.lora_file import FILE, write_lora
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.layers.lora import Lora, make_lora
from launch.runtime.run import Run
from launch.runtime.state import TrainState
from tests.support import commands
from tests.support.adapted_runs import ALPHA, RANK, get_config, write_adapted, write_base
from tests.support.devices import run_on_eight

PROJECTIONS = {"to_q", "to_k", "to_v", "to_out_0", "add_k_proj", "add_v_proj"}


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(epath.Path(tmp_path_factory.mktemp("lora") / "base"))


@pytest.fixture(scope="module")
def adapted(base):
    return write_adapted(base.parent / "adapted", base)


def loaded(run, training):
    return flat(variables_of(run, training.denoiser, training.text_shape)["params"])


@pytest.mark.slow  # Compiles a step, an evaluation and pictures.
def test_a_run_from_its_start_to_its_end(base, tmp_path):
    config = get_config(base)
    config.pictures_every = 3
    training, folder = Training.of(config), epath.Path(tmp_path) / "trained"
    train_stage.train_stage(training, make_text_encoder(config.text), make_mesh({}), folder)
    run = Run.open(folder)
    assert (folder / "learning_curves.png").exists()
    stored = run.shapes()["params"]
    assert jax.tree.map(jnp.shape, stored) == jax.tree.map(
        jnp.shape, training.abstract.variables["params"]
    )
    before, after = loaded(Run.open(base), training), loaded(run, training)
    moved = {path for path in before if np.abs(after[path] - before[path]).max() > 1e-5}
    assert moved == {f"{'/'.join(module)}/kernel" for module in training.lora.modules}


@pytest.mark.slow
def test_losses_on_several_devices(base):
    meshes = [[1, 1, 1], [2, 2, 2], [1, 8, 1], [1, 1, 8]]
    arguments = json.dumps([[mesh, 1] for mesh in meshes]), str(base)
    runs = run_on_eight("tests.imagen_ft.training.training_devices", *arguments)["found"]
    alone, others = runs[0], runs[1:]
    assert len(set(alone["losses"])) == 20
    for mesh, run in zip(meshes[1:], others, strict=True):
        for field in ("losses", "gradient_norms"):
            assert run[field] == pytest.approx(alone[field], rel=1e-5), (mesh, field)


class Scaled(nn.Module):
    """A kernel of one number, which the images are multiplied by."""

    dtype: str = "float32"

    def context(self, text, noise_level=None):
        return Context((), ())

    @nn.compact
    def denoise(self, x, t, context):
        return nn.Dense(1, use_bias=False, name="out")(x)

    def __call__(self, x, t, text):
        return self.denoise(x, t, self.context(text))


@pytest.mark.slow
def test_an_update_moves_the_adapters_by_the_gradient_of_the_network():
    denoiser = Denoiser(Scaled(), Cosine(), 4, 0, 1)
    base, scale, rate = {"out": {"kernel": jnp.float32([[0.5]])}}, 1.5, 0.1
    start = {"out": {"down": jnp.float32([[2.0]]), "up": jnp.float32([[0.25]])}}
    tx, text = optax.sgd(rate), jnp.ones((1, 1, 1))
    state = TrainState(jnp.int32(0), {"params": start}, tx.init(start), {})
    training = Training(
        config=ConfigDict(dict(seed=0, text_drop=0.0, accumulation=1)),
        denoiser=denoiser,
        loss=DiffusionLoss(),
        text_shape=(1, 1),
        class_names=(),
        tx=tx,
        schedule=lambda step: rate,
        decays={},
        lora=Lora(1, scale, (("out",),)),
        frozen=jax.tree.map(lambda _: False, start),
        abstract=state,
    )
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    batch = dict(image=image, label=np.zeros(6, np.int32))
    after, metrics = training.update(state, batch, text, text[0], base)

    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[1]
    inputs = draw_inputs(denoiser, batch, key)

    def loss_of(kernel):
        variables = {"params": {"out": {"kernel": kernel}}}
        states = text[jnp.zeros(6, int)]
        return image_losses(denoiser, DiffusionLoss(), variables, inputs, states)["loss"].mean()

    loss, slope = jax.value_and_grad(loss_of)(jnp.float32([[0.5 + scale * 2.0 * 0.25]]))
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    found = after.variables["params"]["out"]
    assert found["down"] == pytest.approx(2.0 - rate * scale * slope.item() * 0.25, rel=1e-5)
    assert found["up"] == pytest.approx(0.25 - rate * scale * slope.item() * 2.0, rel=1e-5)


def test_only_the_adapters_are_saved(base, adapted):
    run, training = adapted
    assert {module[-1] for module in training.lora.modules} == PROJECTIONS
    stored = run.shapes()["params"]
    assert {path.rpartition("/")[2] for path in flat(stored)} == {"down", "up"}
    assert sum(leaf.size for leaf in jax.tree.leaves(stored)) == sum(
        RANK * sum(leaf.shape)
        for path, leaf in flat(training.denoiser.shapes(training.text_shape)["params"]).items()
        if path.split("/")[-2] in PROJECTIONS and path.endswith("kernel")
    )
    # What the optimiser keeps is of their size too.
    kept = [leaf.size for leaf in jax.tree.leaves(training.abstract.opt_state)]
    assert max(kept) <= max(leaf.size for leaf in jax.tree.leaves(stored))


def test_the_network_is_its_base_with_the_products_in_it(base, adapted):
    run, training = adapted
    before, after = loaded(Run.open(base), training), loaded(run, training)
    adapters = flat(
        run.variables(
            {
                "params": training.lora.shapes(
                    training.denoiser.shapes(training.text_shape)["params"]
                )
            }
        )["params"]
    )
    moved = 0
    for path, kernel in before.items():
        module, _, leaf = path.rpartition("/")
        if f"{module}/down" in adapters and leaf == "kernel":
            down, up = (np.float64(adapters[f"{module}/{part}"]) for part in ("down", "up"))
            expected = kernel + ALPHA / RANK * down @ up
            np.testing.assert_allclose(after[path], expected, rtol=1e-6, atol=1e-7)
            moved += np.abs(expected - kernel).max() > 1e-5
        else:
            np.testing.assert_array_equal(after[path], kernel)
    assert moved == len(training.lora.modules)


def test_new_adapters_change_nothing(base):
    training = Training.of(get_config(base))
    params = loaded(Run.open(base), training)
    nested = flax.traverse_util.unflatten_dict(params, sep="/")
    adapters = training.lora.init(jax.random.key(0), nested)
    assert all(np.std(leaf) > 0.1 for path, leaf in flat(adapters).items() if "down" in path)
    merged = flat(training.lora.merged(nested, adapters))
    for path, leaf in params.items():
        np.testing.assert_array_equal(merged[path], leaf)


def test_a_kernel_of_any_shape():
    """Merged weights compute what the two paths side by side do, also where they are windows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = {"conv": {"kernel": rng.normal(size=(3, 3, 3, 5)).astype(np.float32)}}
    lora = make_lora(dict(rank=2, alpha=1.0, targets=("conv",)), params)
    adapters = lora.init(jax.random.key(0), params)
    adapters["conv"]["up"] = rng.normal(size=(2, 5)).astype(np.float32)

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    side = conv(conv(x, adapters["conv"]["down"]), adapters["conv"]["up"][None, None])
    expected = conv(x, params["conv"]["kernel"]) + 0.5 * side
    found = conv(x, lora.merged(params, adapters)["conv"]["kernel"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_run_of_adapters_is_a_stage_like_any_other(base, adapted):
    run, training = adapted
    config = ConfigDict(training.config.to_dict())
    entry = dict(config.pictures, stage=config.stage, noise_augmentation=0.0, run=str(run.path))
    config.stages = {"sr8": entry}
    _, [variables], [digest] = load_stages(config, make_text_encoder(config.text), base=False)
    jax.tree.map(np.testing.assert_array_equal, flat(variables["params"]), loaded(run, training))
    assert digest == digest_of(run)
    assert digest_of(run) not in (run.digest(), digest_of(Run.open(base)))
    other = dataclasses.replace(run, inputs={**run.inputs, "init_from": "of other weights"})
    assert digest_of(other) != digest_of(run)
    with pytest.raises(InputError, match=r"adapters of .*base, whose weights have changed"):
        loaded(other, training)


def test_adapters_of_a_file_are_merged_into_a_stage(base, tmp_path):
    run, training = write_adapted(epath.Path(tmp_path) / "run", base)
    write_lora(run, tmp_path, np.dtype(np.float32))
    config = ConfigDict(training.config.to_dict())
    entry = dict(config.pictures, stage=config.stage, noise_augmentation=0.0, run=str(base))
    config.stages = {"sr8": dict(entry, lora=str(tmp_path / FILE))}
    encoder = make_text_encoder(config.text)
    _, [variables], [digest] = load_stages(config, encoder, base=False)
    found, expected = flat(variables["params"]), loaded(run, training)
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    assert digest != digest_of(Run.open(base))


def test_adapters_that_do_not_fit_their_type(base, tmp_path):
    folder = epath.Path(tmp_path) / "run"
    run, _ = write_adapted(folder, base, alpha=1e6)
    with pytest.raises(InputError, match=r"lora_B.* does not fit float16; export it as bfloat16"):
        write_lora(run, tmp_path, np.dtype(np.float16))


def test_adapters_that_are_not_there(base, adapted):
    run, training = adapted
    config = ConfigDict(training.config.to_dict())
    entry = dict(config.pictures, stage=config.stage, noise_augmentation=0.0, run="later")
    for path, advice in (("gone", "there is none"), (str(run.path), "name a run of adapters")):
        config.stages = {"sr8": dict(entry, lora=path)}
        message = rf"config\.stages\.sr8\.lora must be a local file of adapters, .*; {advice}"
        with pytest.raises(InputError, match=message):
            load_stages(config, make_text_encoder(config.text), base=False)
    with pytest.raises(InputError, match=r"has adapters of .*base and no whole network"):
        weights.load_unet(run.path)


def test_what_is_adapted_may_be_named_from_a_folder_around_the_run(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    (base.parent / "inner").mkdir()
    run, training = write_adapted(epath.Path("inner/relative"), "base")
    expected = loaded(run, training)
    monkeypatch.chdir(tmp_path)
    cascade = Cascade.load(str(base.parent / "inner/relative"))
    jax.tree.map(np.testing.assert_array_equal, flat(cascade.variables[0]["params"]), expected)
    (tmp_path / "base").mkdir()  # It is called so, and has no weights.
    shutil.copytree(base.parent / run.path, "inner/alone")
    monkeypatch.chdir("inner")
    with pytest.raises(
        InputError, match="adapters of base, which is not at that path nor in a folder"
    ):
        Cascade.load("alone")


@pytest.mark.parametrize(
    ("block", "projections", "others"),
    [
        ("mid_block_attentions_0", sorted(PROJECTIONS), ["group_norm"]),
        (
            "down_3/attention",
            ["query", "key", "value", "text_key", "text_value", "out"],
            ["feed_forward_in", "feed_forward_out", "norm"],
        ),
        (
            "up_blocks_1_attentions_0/transformer_blocks_1",
            ["attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn2_to_k"],
            ["ff_net_0_proj", "ff_net_2", "proj_in"],
        ),
    ],
)
def test_by_default_the_projections_of_attentions_are_adapted(block, projections, others):
    """Of IF's networks, Imagen's and Stable Diffusion's."""
    leaf = {"kernel": np.zeros((4, 4), np.float32)}
    names = [f"{block}/{name}" for name in (*projections, *others)]
    names.append("down_blocks_0_resnets_0/conv1")
    params = flax.traverse_util.unflatten_dict({tuple(n.split("/")): leaf for n in names})
    found = {module[-1] for module in make_lora(dict(rank=1), params).modules}
    assert found == set(projections)


def test_its_base_can_be_kept_in_bfloat16(base):
    training = Training.of(get_config(base, base_dtype="bfloat16"))
    shapes = training.base_shapes(make_mesh({}))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
    # Preflight counts it beside what is trained.
    held = training.held(make_mesh({}))
    assert held["frozen"] == shapes and held["autoencoder"] is None
    counted = jax.tree.map(jnp.shape, (held["parameters"], held["optimizer"]))
    trained = training.abstract.variables, training.abstract.opt_state
    assert counted == jax.tree.map(jnp.shape, trained)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(rank=0), "config.lora.rank must be at least 1, got 0"),
        (dict(alpha=0.0), "config.lora.alpha must be a number above 0, got 0.0"),
        (dict(alpha=True), "config.lora.alpha must be a number above 0, got True"),
        (dict(targets="to_q"), "config.lora.targets must be a list of patterns, got 'to_q'"),
        (dict(targets=(3,)), "config.lora.targets must be a list of patterns, got "),
        (dict(targets=("to_x",)), "config.lora.targets: 'to_x' matches no parameter"),
        (dict(base_dtype="float8"), "config.lora.base_dtype must be one of float32, bfloat16"),
        (dict(ranks=4), "config.lora has no field 'ranks'"),
    ],
)
def test_wrong_fields(base, fields, message):
    with pytest.raises(InputError, match=message):
        Training.of(get_config(base, **fields))


def test_a_dry_run_counts_the_network_and_its_adapters(base, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text("from tests.imagen_ft.tiny_training import get_config")
    flags = ["--config.lora.rank=1", f"--config.init_from={base}", "--dry_run"]
    assert commands.run(finetune.main, config, None, *flags) == 0
    training, out = Training.of(get_config(base, rank=1)), capsys.readouterr().out
    counts = {"unet": training.denoiser.shapes(training.text_shape)["params"]}
    counts["adapters"] = training.abstract.variables["params"]
    for name, shapes in counts.items():
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert f"\n{name}: {count:,} parameters\n" in out


def test_without_weights_there_is_nothing_to_adapt(base):
    config = get_config(base)
    config.init_from = ""
    with pytest.raises(InputError, match=r"config\.init_from must be the weights that"):
        Training.of(config)
