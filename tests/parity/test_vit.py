"""ViT and DeiT against transformers: outputs, features, gradients, weights both ways."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from classifiers import weights
from classifiers.models import presets
from classifiers.models.vit import resize_positions
from classifiers.weights.config_files import write_configs
from classifiers.weights.tensor_rules import FUSED, tensor_rules
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from tests.parity.transformers_models import (
    IMAGENET,
    MODELS,
    PLAIN,
    VITS,
    difference,
    draw_images,
    make,
    to_torch,
)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Transformers' models by name, with their folders."""
    folders = {name: tmp_path_factory.mktemp("vit") for name in VITS}
    return {name: (make(name, folder), folder) for name, folder in folders.items()}


def ours_of(folder, size=12, **fields):
    model, found = weights.build(folder, **fields)
    assert found == 12
    return model, weights.load(folder, model, (size, size, 3))


@pytest.mark.parametrize("name", VITS)
def test_outputs(peers, name):
    peer, folder = peers[name]
    model, variables = ours_of(folder)
    images = draw_images(3, 12)
    out = peer(to_torch(images), output_hidden_states=True)
    run = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, features=True)))
    logits, features = run(variables, images)
    assert difference(logits, out.logits) <= 1e-5
    body = peer.vit if name == "ViT" else peer.deit
    assert difference(features, body(to_torch(images)).last_hidden_state[:, 0]) <= 1e-5


def test_pixels_of_imagenet(tmp_path):
    peer = make("ViT", tmp_path, IMAGENET)
    model, variables = ours_of(tmp_path)
    images = draw_images(2, 12)
    assert model.pixels == "imagenet"
    ours = jax.jit(model.apply)(variables, images)
    assert difference(ours, peer(to_torch(images, IMAGENET)).logits) <= 1e-5
    assert difference(ours, peer(to_torch(images, PLAIN)).logits) > 1e-2


@pytest.mark.parametrize("size", [20, 8])
@pytest.mark.parametrize("name", VITS)
def test_images_of_another_size(peers, name, size):
    peer, folder = peers[name]
    model, variables = ours_of(folder, size)
    images = draw_images(2, size)
    theirs = peer(to_torch(images), interpolate_pos_encoding=True).logits
    assert difference(jax.jit(model.apply)(variables, images), theirs) <= 1e-5


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((5, 4), (3, 7)), ((3, 3), (1, 9))])
def test_positions_are_resized_as_pytorch_does_it(old, new):
    grid = np.random.default_rng(0).normal(size=(*old, 6)).astype(np.float32)
    positions = np.concatenate([np.ones((1, 1, 6), np.float32), grid.reshape(1, -1, 6)], axis=1)
    ours = resize_positions(positions, 1, old, new)
    tensor = torch.tensor(grid).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(tensor, new, mode="bicubic", align_corners=False)
    np.testing.assert_array_equal(ours[:, 0], 1)
    patches = theirs[0].permute(1, 2, 0).reshape(1, -1, 6)
    assert difference(ours[:, 1:], patches) <= 1e-5


@pytest.mark.parametrize("name", ["ViT", "DeiT with teacher"])
def test_gradients(peers, name):
    peer, folder = peers[name]
    model, variables = ours_of(folder)
    images, targets = draw_images(3, 12), np.eye(5, dtype=np.float32)[:3]

    def loss(params):
        logits = model.apply({"params": params}, images, train=True)
        return -(jax.nn.log_softmax(logits) * targets).sum()

    grads = flax.traverse_util.flatten_dict(
        {"params": jax.jit(jax.grad(loss))(variables["params"])}
    )
    grads = {".".join(path): np.asarray(grad) for path, grad in grads.items()}
    peer.zero_grad()
    logits = peer(to_torch(images)).logits
    (-(logits.log_softmax(-1) * torch.tensor(targets)).sum()).backward()
    theirs = {key: value.grad.numpy() for key, value in peer.named_parameters()}
    names = disk_names(peer)
    scale = max(np.abs(grad).max() for grad in theirs.values())
    rules = tensor_rules(model, "transformers")
    for key, mapping in tensor_mappings(variables, rules, FUSED).items():
        ours = mapping.to_file(grads)
        assert np.abs(ours - theirs[names[key]]).max() <= 1e-5 * scale, key


def disk_names(peer):
    """What transformers calls a tensor in memory, by its name on the disk."""
    changes = {
        ".encoder.layer.": ".layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    names = {}
    for name in peer.state_dict():
        disk = name
        for theirs, memory in changes.items():
            disk = disk.replace(memory, theirs)
        names[disk] = name
    return names


@pytest.mark.parametrize("name", VITS)
def test_transformers_reads_what_is_written(peers, name, tmp_path):
    peer, folder = peers[name]
    model, variables = ours_of(folder)
    changed = jax.tree.map(lambda leaf: leaf * 1.25, variables)
    weights.save(tmp_path, changed, model, (12, 12, 3), "transformers")
    write_configs(tmp_path, model, (12, 12, 3), "transformers")
    read, facts = MODELS[name][0].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts.values())
    images = draw_images(2, 12)
    ours = jax.jit(model.apply)(changed, images)
    assert difference(ours, read.eval()(to_torch(images)).logits) <= 1e-5
    assert difference(ours, peer(to_torch(images)).logits) > 1e-2
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    given = processor(pixels, return_tensors="pt", input_data_format="channels_last")
    expected = to_torch(pixels[None] / np.float32(127.5) - 1)
    assert difference(given["pixel_values"].numpy(), expected) <= 1e-5


def test_half_precision_is_near(peers):
    peer, folder = peers["ViT"]
    model, variables = ours_of(folder, dtype=jnp.bfloat16)
    images = draw_images(4, 12)
    out = jax.jit(functools.partial(model.apply, train=True))(variables, images)
    assert out.dtype == jnp.float32
    assert 1e-5 < difference(out, peer(to_torch(images)).logits) < 0.05


PUBLISHED = {
    "vit_b16": dict(),
    "vit_l16": dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "deit_s": dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    "deit_b_384": dict(image_size=384),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    """Every tensor of the full networks has its name and shape; nothing is allocated."""
    with torch.device("meta"):
        config = transformers.ViTConfig(num_labels=1000, **PUBLISHED[name])
        peer = transformers.ViTForImageClassification(config)
    size, model = config.image_size, presets.make(name, 1000)
    names = disk_names(peer)
    theirs = {disk: tuple(peer.state_dict()[memory].shape) for disk, memory in names.items()}
    shapes = presets.variable_shapes(model, (size, size, 3))
    ours = tensor_mappings(shapes, tensor_rules(model, "transformers"), FUSED)
    assert {key: mapping.file_shape for key, mapping in ours.items()} == theirs
