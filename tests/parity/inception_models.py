"""The Inception-v3 of 2015 in PyTorch under the names of its published state dict.

Its widths, strides and pools are those that torch-fidelity's and pytorch-fid's network has.
"""

import functools

import torch
from torch import nn
from torch.nn import functional

_AVERAGE = functools.partial(
    functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
)
_MAX = functools.partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)
_HALF = functools.partial(functional.max_pool2d, kernel_size=3, stride=2)
ACROSS, DOWN = dict(kernel_size=(1, 7), padding=(0, 3)), dict(kernel_size=(7, 1), padding=(3, 0))
WIDE, HIGH = dict(kernel_size=(1, 3), padding=(0, 1)), dict(kernel_size=(3, 1), padding=(1, 0))
POINT, THREE, FIVE = (dict(kernel_size=k, padding=k // 2) for k in (1, 3, 5))
HALVING = dict(kernel_size=3, stride=2)


class ConvNorm(nn.Module):
    def __init__(self, inputs, outputs, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side; the last layer of a branch may be a pair that is set side by side."""

    def __init__(self, inputs, branches, pool, share):
        super().__init__()
        self.branches, self.pool, self.outputs = branches, pool, 0
        for layers in branches:
            width = inputs
            for layer in layers:
                pair = layer if isinstance(layer, list) else [layer]
                for name, outputs, options in pair:
                    setattr(self, name, ConvNorm(width, outputs // share, **options))
                width = sum(outputs // share for _, outputs, _ in pair)
            self.outputs += width
        if not any(layers and "pool" in layers[0][0] for layers in branches):
            self.outputs += inputs  # what is pooled goes on as it is

    def forward(self, x):
        outputs = []
        for layers in self.branches:
            y = self.pool(x) if "pool" in layers[0][0] else x
            for layer in layers:
                pair = layer if isinstance(layer, list) else [layer]
                y = torch.cat([getattr(self, name)(y) for name, _, _ in pair], 1)
            outputs.append(y)
        if self.pool is _HALF:
            outputs.append(self.pool(x))
        return torch.cat(outputs, 1)


def _numbered(name, *layers):
    return [(f"{name}_{n}", width, options) for n, (width, options) in enumerate(layers, 1)]


def _a(pooled):
    return [
        [("branch1x1", 64, POINT)],
        _numbered("branch5x5", (48, POINT), (64, FIVE)),
        _numbered("branch3x3dbl", (64, POINT), (96, THREE), (96, THREE)),
        [("branch_pool", pooled, POINT)],
    ]


_B = [
    [("branch3x3", 384, HALVING)],
    _numbered("branch3x3dbl", (64, POINT), (96, THREE), (96, HALVING)),
]


def _c(c7):
    double = [(c7, POINT), (c7, DOWN), (c7, ACROSS), (c7, DOWN), (192, ACROSS)]
    return [
        [("branch1x1", 192, POINT)],
        _numbered("branch7x7", (c7, POINT), (c7, ACROSS), (192, DOWN)),
        _numbered("branch7x7dbl", *double),
        [("branch_pool", 192, POINT)],
    ]


_D = [
    _numbered("branch3x3", (192, POINT), (320, HALVING)),
    _numbered("branch7x7x3", (192, POINT), (192, ACROSS), (192, DOWN), (192, HALVING)),
]
_E = [
    [("branch1x1", 320, POINT)],
    [
        ("branch3x3_1", 384, POINT),
        [("branch3x3_2a", 384, WIDE), ("branch3x3_2b", 384, HIGH)],
    ],
    [
        *_numbered("branch3x3dbl", (448, POINT), (384, THREE)),
        [("branch3x3dbl_3a", 384, WIDE), ("branch3x3dbl_3b", 384, HIGH)],
    ],
    [("branch_pool", 192, POINT)],
]
_BLOCKS = {
    "Mixed_5b": (_a(32), _AVERAGE),
    "Mixed_5c": (_a(64), _AVERAGE),
    "Mixed_5d": (_a(64), _AVERAGE),
    "Mixed_6a": (_B, _HALF),
    "Mixed_6b": (_c(128), _AVERAGE),
    "Mixed_6c": (_c(160), _AVERAGE),
    "Mixed_6d": (_c(160), _AVERAGE),
    "Mixed_6e": (_c(192), _AVERAGE),
    "Mixed_7a": (_D, _HALF),
    "Mixed_7b": (_E, _AVERAGE),
    "Mixed_7c": (_E, _MAX),
}


class Inception(nn.Module):
    def __init__(self, share):
        super().__init__()
        stem = [(3, 32 // share, HALVING), (32 // share, 32 // share, dict(kernel_size=3))]
        stem += [(32 // share, 64 // share, THREE), (64 // share, 80 // share, POINT)]
        stem += [(80 // share, 192 // share, dict(kernel_size=3))]
        self.stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"]
        self.stem += ["Conv2d_3b_1x1", "Conv2d_4a_3x3"]
        for name, (inputs, outputs, options) in zip(self.stem, stem, strict=True):
            setattr(self, name, ConvNorm(inputs, outputs, **options))
        width = 192 // share
        for name, (branches, pool) in _BLOCKS.items():
            setattr(self, name, Mixed(width, branches, pool, share))
            width = getattr(self, name).outputs
        self.fc = nn.Linear(width, 1008)

    def forward(self, x):
        """Taps by our names, of scaled images [b, 3, h, w]; `spatial` is [b, h, w, c]."""
        taps = {}
        for name in self.stem:
            x = getattr(self, name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = _HALF(x)
                taps["features_64" if "2b" in name else "features_192"] = x.mean((2, 3))
        for name in _BLOCKS:
            if name == "Mixed_6d":
                taps["spatial"] = self.Mixed_6d.branch1x1(x).permute(0, 2, 3, 1)[..., :7]
            x = getattr(self, name)(x)
            if name == "Mixed_6e":
                taps["features_768"] = x.mean((2, 3))
        x = taps["features"] = x.mean((2, 3))
        taps["logits_unbiased"] = x @ self.fc.weight.T
        taps["logits"] = self.fc(x)
        return taps


def make(path, share=1):
    """The network in float64, with 1 / share of all channels; its state dict is saved at path."""
    model = Inception(share).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            # Through so many layers the numbers keep their size.
            spread = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() == 4 else 0.1
            tensor.normal_(0, spread, generator=generator)
    torch.save(model.state_dict(), path)
    return model
