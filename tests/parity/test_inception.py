"""Inception and its rules of resizing against PyTorch and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import save_file

from classifiers.extractors import inception
from classifiers.extractors.pixel_rules import INCEPTION_RULES, inception_pixels
from classifiers.models.inception import Inception
from launch.errors import InputError
from launch.runtime.checkpoints.content_digest import content_digest
from tests.parity import inception_models
from tests.parity.transformers_models import difference

SHAPES = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))


def draw_images(height, width, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)


def between_corners(x, axis):
    """TensorFlow 1's bilinear rule: new pixel i lies at i * old / new, a number of 32 bits."""
    old = x.shape[axis]
    at = torch.arange(299).to(x.dtype) * float(np.float32(old / 299))
    low = at.long()
    shape = [-1 if other == axis else 1 for other in range(4)]
    below = x.index_select(axis, low)
    above = x.index_select(axis, (low + 1).clamp(max=old - 1))
    return below + (above - below) * (at - low).reshape(shape)


def resized_by_peer(images, rule, dtype):
    """[b, 3, 299, 299], as the rule's tool scales its network's input."""
    x = torch.tensor(images).permute(0, 3, 1, 2).to(dtype)
    if rule == "tf1":
        for axis in (2, 3):
            x = between_corners(x, axis)
        return (x - 128) / 128
    if rule == "pytorch_fid":
        x = torch.nn.functional.interpolate(x / 255, (299, 299), mode="bilinear")
        return 2 * x - 1
    planes = [
        np.asarray(PIL.Image.fromarray(plane).resize((299, 299), PIL.Image.BICUBIC))
        for plane in x.reshape(-1, *x.shape[2:]).numpy().astype(np.float32)
    ]
    clean = np.stack(planes).reshape(*x.shape[:2], 299, 299).clip(0, 255)
    return torch.tensor((clean - 128) / 128, dtype=dtype)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (320, 512)])
@pytest.mark.parametrize("rule", INCEPTION_RULES)
def test_pixels(rule, size):
    images = draw_images(*size, batch=1)
    with jax.enable_x64(True):
        ours = inception_pixels(images, rule, dtype=jnp.float64).transpose(0, 3, 1, 2)
    assert difference(ours, resized_by_peer(images, rule, torch.float64)) <= 1e-6
    # In float32 positions of some hundred pixels are rounded by 1e-5.
    single = inception_pixels(images, rule).transpose(0, 3, 1, 2)
    assert difference(single, resized_by_peer(images, rule, torch.float32)) <= 1e-4


def test_grey_images_are_seen_in_colour():
    images = draw_images(8, 8)
    images[...] = images[..., :1]
    grey = inception_pixels(images[..., :1], "tf1", 16)
    np.testing.assert_array_equal(grey, inception_pixels(images, "tf1", 16))


def largest_error(folder, share, sizes):
    """Of all taps in float64, over all rules and sizes of images."""
    peer = inception_models.make(folder / "weights.pth", share)
    with jax.enable_x64(True):
        model = Inception(width=32 // share, dtype=jnp.float64)
        variables = inception.load(folder / "weights.pth", model)
        cases = [(rule, draw_images(*size, batch=1)) for rule in INCEPTION_RULES for size in sizes]
        pixels = [inception_pixels(images, rule, dtype=jnp.float64) for rule, images in cases]
        ours = jax.jit(model.apply)(variables, jnp.concatenate(pixels))
    theirs = peer(torch.cat([resized_by_peer(im, rule, torch.float64) for rule, im in cases]))
    assert ours.keys() == theirs.keys()
    return max(difference(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_narrow_network(tmp_path):
    assert largest_error(tmp_path, 16, [(40, 56)]) <= 1e-6


@pytest.mark.slow
def test_the_whole_network(tmp_path):
    assert largest_error(tmp_path, 1, [(32, 32), (256, 320)]) <= 1e-6


def test_extractor(tmp_path, monkeypatch):
    """The published network is found where others keep it; its weights' digest tells."""
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), SHAPES)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="hub/checkpoints has no weights"):
        inception.inception()
    path = tmp_path / "hub" / "checkpoints" / inception.FILES[1]
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(inception, "load", lambda found: {path: variables}[found])
    extractor = inception.inception("clean")
    assert extractor.made_from == dict(
        name="inception", rule="clean", digest=content_digest(variables)
    )
    taps = jax.eval_shape(extractor.apply, SHAPES, jnp.zeros((2, 64, 48, 1), jnp.uint8))
    assert {name: tap.shape[1:] for name, tap in taps.items()} == {
        "features_64": (64,),
        "features_192": (192,),
        "features_768": (768,),
        "features": (2048,),
        "spatial": (17, 17, 7),
        "logits": (1008,),
        "logits_unbiased": (1008,),
    }
    with pytest.raises(InputError, match="rule must be one of tf1, pytorch_fid, clean, got 'tf2'"):
        inception.inception("tf2")


def damage(tensors, name):
    if name == "a norm is missing":
        del tensors["Mixed_5b.branch1x1.bn.running_var"]
    elif name == "a layer is missing":
        del tensors["Mixed_5b.branch1x1.conv.weight"]
    else:
        tensors["fc.bias"][3] = np.nan


DAMAGES = {
    "a norm is missing": "of Mixed_5b.branch1x1 are missing or differ in width",
    "a layer is missing": "of Mixed_5b.branch1x1 are missing or differ in width",
    "NaN": r"the tensor fc\.bias has NaN or infinity",
}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    peer = inception_models.make(tmp_path_factory.mktemp("inception") / "weights.pth", share=16)
    return {name: tensor.numpy() for name, tensor in peer.state_dict().items()}


@pytest.mark.parametrize("name", DAMAGES)
def test_other_weights(tensors, tmp_path, name):
    wrong = {name: tensor.copy() for name, tensor in tensors.items()}
    damage(wrong, name)
    save_file(wrong, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=DAMAGES[name]):
        inception.load(tmp_path / "weights.safetensors", Inception(width=2))
