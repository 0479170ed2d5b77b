"""Products of float32 are asked for in full: TPUs would round to bfloat16, GPUs to TF32.

Read from the programs that are lowered for them; no such chip is needed.
"""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import classifiers.contrastive.evaluation
import classifiers.models.presets
import classifiers.training.evaluation
import classifiers.training.training
import imagen_ft.models.presets
import imagen_ft.training.evaluation
import imagen_ft.training.training
from classifiers.contrastive import words
from classifiers.contrastive.training import Training
from classifiers.evaluation import label_maps, zero_shot
from classifiers.models.clip import Clip
from classifiers.models.clip_text import ClipTextEncoder
from classifiers.models.inception import Inception
from classifiers.models.vit import ViT
from imagen_ft.models.autoencoder import Autoencoder
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.models.t5 import T5Encoder
from input_pipeline.source import ArraySource
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.layers import cpu_kernels, layers
from launch.runtime.state import TrainState
from tests.classifiers import tiny_training as tiny_classifier
from tests.imagen_ft import tiny_training as tiny_stage
from tests.support.slow import only_fast

CLASSIFIERS = {
    "efficientnet_lite": dict(stage_sizes=(1, 1), width=8),
    "resnet": dict(stage_sizes=(1,), width=8),
    "resnet_rs": dict(stage_sizes=(1,), width=8),
    "vit": dict(width=16, depth=1, num_heads=2, patch_size=4),
}
NETWORKS = {
    "tiny_if_ii": dict(block_out_channels=(8,), layers_per_block=(1,), attention=(True,)),
    "tiny_imagen_sr": dict(
        block_out_channels=(8,),
        layers_per_block=(1,),
        self_attention=(True,),
        text_attention=(True,),
    ),
    "tiny_t5": dict(num_layers=1),
    "tiny_sdxl": dict(
        block_out_channels=(8,), attention=(True,), num_heads=2, depths=1, size_embedding_dim=0
    ),
    "tiny_clip": dict(num_layers=1),
    "tiny_vae": dict(block_out_channels=(8,)),
}
# They measure, and are not trained.
EXTRACTORS = {"inception": Inception(width=2)}
PLATFORMS = ("tpu", "cuda")


def products(text):
    """Of each product and convolution: whether it takes float32 alone, whether it is in full."""
    lines = re.findall(r"stablehlo\.(?:dot_general|convolution)\W.*", text)
    operands = [line.rpartition(" : ")[2].partition("->")[0] for line in lines]
    assert lines
    return [
        (types.count("xf32>") == 2, line.count("HIGHEST") == 2)
        for types, line in zip(operands, lines, strict=True)
    ]


def of_network(name, dtype):
    """`products` of a network and of its gradient."""
    if name in CLASSIFIERS:
        model = classifiers.models.presets.make(name, 3, dtype=dtype, **CLASSIFIERS[name])
        inputs = [jnp.zeros((2, 8, 8, 3))]
    else:
        model = imagen_ft.models.presets.make(name, dtype=dtype, **NETWORKS[name])
        inputs = [jnp.zeros((2, 4, 4, 6)), jnp.zeros(2), jnp.zeros((2, 5, 16)), jnp.zeros(2)]
        if isinstance(model, LatentUNet):
            inputs[-1] = None
        if isinstance(model, T5Encoder):
            inputs = [jnp.zeros((2, 5), int), jnp.ones((2, 5), bool)]
        if isinstance(model, ClipTextEncoder):
            inputs = [jnp.zeros((2, 5), int)]
        if isinstance(model, Autoencoder):
            inputs = [jnp.zeros((2, 4, 4, 3))]
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def loss(params, others):
        outputs = jax.tree.leaves(model.apply({**others, "params": params}, *inputs))
        return sum(output.astype(jnp.float32).sum() for output in outputs)

    traced = jax.jit(jax.value_and_grad(loss)).trace(shapes.pop("params"), shapes)
    return products(traced.lower(lowering_platforms=PLATFORMS).as_text())


@pytest.fixture(autouse=True)
def forms_of_other_platforms(monkeypatch):
    """CPUs have forms of their own, whose products are in full whatever they ask for."""
    for module in (cpu_kernels, layers):
        monkeypatch.setattr(module, "platform", lambda: "tpu")


def test_every_network_is_here():
    assert set(CLASSIFIERS) == set(classifiers.models.presets.MODULES)
    presets = imagen_ft.models.presets.PRESETS
    modules = {preset.module for preset in presets.values()}
    assert {presets[name].module for name in NETWORKS} == modules


@pytest.mark.parametrize(
    "name", only_fast([*CLASSIFIERS, *NETWORKS], ["vit", "tiny_imagen_sr", "tiny_t5"])
)
def test_networks(name):
    assert set(of_network(name, "float32")) == {(True, True)}
    half = of_network(name, "bfloat16")
    assert set(half) <= {(False, False), (True, True)}
    # A classifier's logits are float32, whatever is before them: a product and its gradients.
    heads = half.count((True, True)) / len(PLATFORMS)
    assert heads == (3 if name in CLASSIFIERS else 0) < len(half)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors(name):
    model, images = EXTRACTORS[name], jax.ShapeDtypeStruct((2, 75, 75, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = jax.jit(model.apply).trace(shapes, images)
    assert set(products(traced.lower(lowering_platforms=PLATFORMS).as_text())) == {(True, True)}


@pytest.fixture
def programs(monkeypatch):
    """Those of all that is jitted and then called."""
    texts, real = [], jax.jit

    def jit(function, **options):
        jitted = real(function, **options)

        def call(*args):
            traced = jitted.trace(*args)
            texts.append(traced.lower(lowering_platforms=PLATFORMS).as_text())
            return jitted(*args)

        return call

    monkeypatch.setattr(jax, "jit", jit)
    return texts


def zeros(shapes):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def digits(size):
    images = np.zeros((2, size, size, 1), np.uint8)
    return ArraySource(images, np.arange(2), tuple(map(str, range(10))))


@pytest.mark.parametrize("net", ["resnet", "vit"])
def test_evaluation_of_classifiers(net, programs):
    config = tiny_classifier.get_config(f"net={net}")
    training = classifiers.training.training.Training.of(config, 10, (8, 8, 1))
    evaluate = classifiers.training.evaluation.make_evaluation(training, digits(8), make_mesh({}))
    evaluate(zeros(training.abstract.inference_variables))
    assert set(products("\n".join(programs))) == {(True, True)}


def test_zero_shot_from_features(programs):
    features, labels = np.ones((2, 4), np.float32), np.zeros(2, int)
    label_map = label_maps.identity(("a", "b"))
    zero_shot.scores_of_features(features, labels, features, label_map, scale=100.0)
    assert set(products("\n".join(programs))) == {(True, True)}


@pytest.mark.slow
def test_zero_shot_while_clip_is_trained(programs):
    text = dict(width=8, mlp_width=8, num_layers=1, num_heads=1, vocab_size=514, end_token=513)
    vit = ViT(num_classes=0, **CLASSIFIERS["vit"])
    model = Clip(vit, ClipTextEncoder(**text, max_length=20), projection_width=8)
    tokenizer = words.open_tokenizer(words.read_files("bytes", 20), model.text)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 20), int)
    )
    config = ConfigDict(dict(evaluation_batch_size=2))
    training = mock.Mock(Training, config=config, model=model)
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), ("a", "b"))
    classifiers.contrastive.evaluation.make_evaluation(training, source, tokenizer, make_mesh({}))(
        zeros(shapes)
    )
    assert set(products("\n".join(programs))) == {(True, True)}


@pytest.mark.slow
def test_evaluation_of_stages(programs):
    training = imagen_ft.training.training.Training.of(tiny_stage.get_config())
    state = mock.Mock(
        TrainState, inference_variables=zeros(training.abstract.inference_variables), ema={}
    )
    text = jnp.zeros((10, *training.text_shape)), jnp.zeros(training.text_shape)
    evaluate = imagen_ft.training.evaluation.make_evaluation(
        training, digits(8), make_mesh({}), text, lambda variables: variables
    )
    evaluate(state)
    assert set(products("\n".join(programs))) == {(True, True)}


def test_the_user_has_the_last_word():
    layer = layers.Dense(4)
    args = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((2, 3))), jnp.zeros((2, 3))
    with jax.default_matmul_precision("tensorfloat32"):
        text = jax.jit(layer.apply).lower(*args).as_text()
    assert "HIGHEST" not in text and "HIGH" in text
