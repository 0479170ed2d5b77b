"""Files of other layouts against PyTorch, which reads them by their own names."""

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from classifiers import weights
from classifiers.models import presets
from classifiers.weights.tensor_rules import COUNTER
from tests.parity.transformers_models import difference, draw_images
from tests.support.slow import only_fast

FIELDS = dict(patch_size=4, width=16, depth=2, num_heads=4)
VITS = {
    "ViT": {},
    "DeiT with teacher": dict(distillation="heads"),
    "DeiT III": dict(positions="learned_patches", layer_scale=0.1),
    "plain": dict(pool="mean", positions="sincos", mlp_dim=24),
}
RESNETS = {
    "bottlenecks": dict(stage_sizes=(2, 1), width=4),
    "two layers": dict(stage_sizes=(1, 2), width=4, bottleneck=False),
}


def draw(model, size):
    """Random variables, no scale and no variance near zero."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    shapes = presets.variable_shapes(model, (size, size, 3))
    return jax.tree_util.tree_map_with_path(one, shapes)


def vit_by_timms_names(tensors, images):
    """A vision transformer that is told what it is by the tensors it is given."""
    linear = lambda x, name: F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])  # noqa: E731

    def norm(x, name):
        return F.layer_norm(
            x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6
        )

    patch = tensors["patch_embed.proj.weight"]
    x = F.conv2d(images, patch, tensors["patch_embed.proj.bias"], stride=patch.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    names = [name for name in ("cls_token", "dist_token") if name in tensors]
    of_tokens = tensors["pos_embed"].shape[1] - x.shape[1]
    x = x if of_tokens else x + tensors["pos_embed"]
    x = torch.cat([*(tensors[name].expand(len(x), -1, -1) for name in names), x], dim=1)
    x = x + tensors["pos_embed"] if of_tokens else x
    for index in range(FIELDS["depth"]):
        block = f"blocks.{index}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = (
            part.unflatten(-1, (FIELDS["num_heads"], -1)).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        h = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        h = linear(h.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + h * tensors.get(f"{block}.ls1.gamma", torch.ones(()))
        h = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(h, f"{block}.mlp.fc2") * tensors.get(f"{block}.ls2.gamma", torch.ones(()))
    x = norm(x, "norm")
    logits = linear(x[:, 0] if names else x.mean(1), "head")
    return (logits + linear(x[:, 1], "head_dist")) / 2 if "dist_token" in tensors else logits


def resnet_by_torchvisions_names(tensors, images):
    """A ResNet that is told what it is by the tensors it is given."""

    def conv(x, name, stride=1):
        kernel = tensors[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{name}.{part}"] for part in parts))

    x = F.max_pool2d(F.relu(norm(conv(images, "conv1", 2), "bn1")), 3, 2, 1)
    for name in sorted({".".join(key.split(".")[:2]) for key in tensors if key[:5] == "layer"}):
        stride = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        last = 3 if f"{name}.conv3.weight" in tensors else 2
        h = x
        for layer in range(1, last + 1):
            # Of bottlenecks the second convolution strides, of blocks of two the first.
            h = conv(h, f"{name}.conv{layer}", stride if layer == last - 1 else 1)
            h = norm(h, f"{name}.bn{layer}")
            h = F.relu(h) if layer < last else h
        if f"{name}.downsample.0.weight" in tensors:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = F.relu(x + h)
    return F.linear(x.mean((2, 3)), tensors["fc.weight"], tensors["fc.bias"])


def efficientnet_by_its_names(tensors, images):
    """An EfficientNet-Lite that is told what it is by the tensors it is given, but for strides."""

    def conv(x, name, stride=1):
        kernel = tensors[f"{name}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        # TensorFlow's: as many windows as strides, what they need beyond the border mostly behind.
        pads = []
        for size, window in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):
            beyond = max((-(-size // stride) - 1) * stride + window - size, 0)
            pads += [beyond // 2, beyond - beyond // 2]
        return F.conv2d(F.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{name}.{part}"] for part in parts), eps=1e-3)

    x = F.relu6(norm(conv(images, "_conv_stem", 2), "_bn0"))
    count = len({key.split(".")[1] for key in tensors if key.startswith("_blocks")})
    for index in range(count):
        block, h = f"_blocks.{index}", x
        if f"{block}._expand_conv.weight" in tensors:
            h = F.relu6(norm(conv(h, f"{block}._expand_conv"), f"{block}._bn0"))
        h = conv(h, f"{block}._depthwise_conv", 2 if index in EFFICIENTNET_STRIDES else 1)
        h = conv(F.relu6(norm(h, f"{block}._bn1")), f"{block}._project_conv")
        h = norm(h, f"{block}._bn2")
        x = x + h if h.shape == x.shape else h
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1"))
    return F.linear(x.mean((2, 3)), tensors["_fc.weight"], tensors["_fc.bias"])


EFFICIENTNET = dict(stage_sizes=(1, 2, 2, 1), width=8)
EFFICIENTNET_STRIDES = (1, 3, 5)  # blocks that halve the resolution
PEERS = {
    "efficientnet_lite": efficientnet_by_its_names,
    "resnet": resnet_by_torchvisions_names,
    "vit": vit_by_timms_names,
}
CASES = {
    "EfficientNet-Lite": ("efficientnet", "efficientnet_lite", EFFICIENTNET, 45),
    **{name: ("timm", "vit", {**FIELDS, **fields}, 12) for name, fields in VITS.items()},
    **{name: ("torchvision", "resnet", fields, 20) for name, fields in RESNETS.items()},
}


@pytest.mark.parametrize("case", only_fast(CASES, ["plain"]))
def test_a_file_is_read_alike_and_comes_back(case, tmp_path):
    layout, module, fields, size = CASES[case]
    model = presets.make(module, 5, **fields)
    variables = draw(model, size)
    weights.save(tmp_path, variables, model, (size, size, 3), layout)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    images = draw_images(3, size)
    theirs = PEERS[module](tensors, torch.tensor(images).permute(0, 3, 1, 2))
    assert difference(jax.jit(model.apply)(variables, images), theirs) <= 1e-5
    assert all(tensors[name].dtype == torch.int64 for name in tensors if name.endswith(COUNTER))
    back = weights.load(tmp_path / "model.safetensors", model, (size, size, 3))
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
