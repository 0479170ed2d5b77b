"""DINOv2 against transformers, torch.hub's rule for positions, PyTorch's resizing and Pillow's."""

import jax
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file, save_file

from classifiers.extractors.dinov2 import dinov2, load
from classifiers.extractors.pixel_rules import DINOV2_RULES, dinov2_pixels
from classifiers.models.vit import ViT
from launch.errors import InputError
from tests.parity.transformers_models import IMAGENET, difference, to_torch

TRAINED, SIZE = 37 * 4, 16 * 4
FIELDS = dict(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=TRAINED,
    patch_size=4,
    layer_norm_eps=1e-6,
)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A small network of the published kind, no tensor of which is zero or one, and its folder."""
    model = transformers.Dinov2Model(transformers.Dinov2Config(**FIELDS)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = tensor[0].numel() ** -0.5 if tensor.dim() == 2 else 0.3
            tensor.normal_(float("norm" in name), spread, generator=generator)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return model, folder


def draw_images(height, width, batch=2, channels=3):
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, channels), np.uint8)


def hub_positions(positions):
    """torch.hub's: by a factor that is a little larger than the sizes' ratio."""
    factor = (SIZE // 4 + 0.1) / 37
    grid = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    assert grid.shape[2:] == (SIZE // 4, SIZE // 4)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize("rule", ["hub", "size"])
def test_outputs(peer, rule, monkeypatch):
    model, folder = peer
    images = draw_images(SIZE, SIZE)
    extractor = dinov2(folder, rule, "pil", SIZE)
    ours = jax.jit(extractor.apply)(extractor.variables, images)
    if rule == "hub":
        known = model.embeddings.position_embeddings
        monkeypatch.setattr(
            model.embeddings, "interpolate_pos_encoding", lambda *args: hub_positions(known)
        )
    with torch.no_grad():
        theirs = model(to_torch(images / np.float32(127.5) - 1, IMAGENET)).last_hidden_state
    assert difference(ours["features"], theirs[:, 0]) <= 1e-5
    patches = theirs[:, 1:].reshape(2, SIZE // 4, SIZE // 4, -1)
    assert difference(ours["spatial"], patches) <= 1e-5


def test_the_rules_for_positions_differ(peer):
    model, folder = peer
    found = {rule: load(folder, rule, SIZE)[1]["params"]["positions"] for rule in ("hub", "size")}
    assert difference(found["hub"], hub_positions(model.embeddings.position_embeddings)) <= 1e-5
    assert difference(found["hub"], found["size"]) > 1e-2
    for rule in found:
        whole = load(folder, rule, TRAINED)[1]["params"]["positions"]
        assert difference(whole, model.embeddings.position_embeddings) == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (300, 280), (56, 640)])
@pytest.mark.parametrize("rule", DINOV2_RULES)
def test_pixels(rule, size):
    images = draw_images(*size)
    ours = (np.asarray(dinov2_pixels(images, rule, 224)) + 1) * 127.5
    if rule == "pil":
        theirs = [PIL.Image.fromarray(im).resize((224, 224), PIL.Image.BICUBIC) for im in images]
        assert np.abs(ours - np.stack(theirs)).max() <= 1e-3  # all grey levels are the same
        return
    x = torch.tensor(images).permute(0, 3, 1, 2).double()
    theirs = F.interpolate(x, (224, 224), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    assert difference(ours, theirs) <= 1e-5


PUBLISHED = {
    "B": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
    "L": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    """The published networks have as many parameters; nothing is allocated."""
    with torch.device("meta"):
        config = transformers.Dinov2Config(patch_size=14, image_size=518, **PUBLISHED[name])
        theirs = sum(p.numel() for p in transformers.Dinov2Model(config).parameters())
    width, depth, heads = PUBLISHED[name].values()
    model = ViT(1, width, depth, heads, patch_size=14, layer_scale=1.0)
    image = jax.ShapeDtypeStruct((1, 518, 518, 3), "float32")
    init = lambda key, x: model.init(key, x, features=True)  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert theirs == ours + width  # their token of masked patches


def other(tensors, name):
    if name == "registers":
        tensors["embeddings.register_tokens"] = np.zeros((1, 4, 128), np.float32)
    elif name == "a layer is missing":
        del tensors["encoder.layer.1.norm1.bias"]
    elif name == "NaN":
        tensors["layernorm.bias"][0] = np.nan
    else:
        del tensors["embeddings.position_embeddings"]


OTHERS = {
    "registers": "no tensor embeddings.register_tokens",
    "a layer is missing": r"the tensor encoder\.layer\.1\.norm1\.bias of the model is missing",
    "NaN": r"the tensor layernorm\.bias has NaN or infinity",
    "another network": "embeddings.position_embeddings or the patches' kernel is missing",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_weights(peer, tmp_path, name):
    tensors = load_file(peer[1] / "model.safetensors")
    other(tensors, name)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=OTHERS[name]):
        dinov2(tmp_path, size=SIZE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(positions="timm"), "rule must be one of hub, size, got 'timm'"),
        (dict(pixels="clean"), "rule must be one of torch, pil, got 'clean'"),
        (dict(size=30), r"size must be a multiple of 4 \(the patch size\), got 30"),
        (dict(path="nowhere"), "nowhere: no such file or folder"),
    ],
)
def test_wrong_arguments(peer, fields, message):
    with pytest.raises(InputError, match=message):
        dinov2(**{"path": peer[1], **fields})
