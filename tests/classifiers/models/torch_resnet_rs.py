"""ResNet-RS of torch.nn's layers, which takes our weights: what ours is held against."""

import numpy as np
import torch
from torch import nn


class SqueezeExcite(nn.Module):
    def __init__(self, channels, ratio):
        super().__init__()
        width = max(1, int(channels * ratio))
        self.reduce, self.expand = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x):
        h = torch.relu(self.reduce(nn.functional.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.expand(h))


class Shortcut(nn.Module):
    def __init__(self, channels, out, stride, momentum):
        super().__init__()
        # Only pixels that exist are averaged.
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride == 2 else nn.Identity()
        self.conv = nn.Conv2d(channels, out, 1, bias=False)
        self.norm = norm(out, momentum)

    def forward(self, x):
        return self.norm(self.conv(self.pool(x)))


class Block(nn.Module):
    def __init__(self, channels, width, stride, ratio, momentum):
        super().__init__()
        out = 4 * width
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, width, 1, bias=False),
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                nn.Conv2d(width, out, 1, bias=False),
            ]
        )
        self.norms = nn.ModuleList([norm(c, momentum) for c in (width, width, out)])
        self.squeeze_excite = SqueezeExcite(out, ratio)
        self.shortcut = Shortcut(channels, out, stride, momentum) if channels != out else None

    def forward(self, x):
        h = torch.relu(self.norms[0](self.convs[0](x)))
        h = torch.relu(self.norms[1](self.convs[1](h)))
        h = self.squeeze_excite(self.norms[2](self.convs[2](h)))
        return torch.relu(h + (x if self.shortcut is None else self.shortcut(x)))


class ResNetRS(nn.Module):
    """Without dropout and stochastic depth."""

    def __init__(self, num_classes, stage_sizes, width, ratio, momentum):
        super().__init__()
        stem = [3, width // 2, width // 2, width, width]
        self.stem_convs = nn.ModuleList(
            nn.Conv2d(stem[i], stem[i + 1], 3, (2, 1, 1, 2)[i], 1, bias=False) for i in range(4)
        )
        self.stem_norms = nn.ModuleList(norm(c, momentum) for c in stem[1:])
        self.blocks, self.names, channels = nn.ModuleList(), [], width
        for stage, size in enumerate(stage_sizes):
            for index in range(size):
                stride = 2 if stage and not index else 1
                mid = width * 2**stage
                self.blocks.append(Block(channels, mid, stride, ratio, momentum))
                self.names.append(f"stage_{stage}_block_{index}")
                channels = 4 * mid
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x):
        """Features and logits."""
        for conv, batch_norm in zip(self.stem_convs, self.stem_norms, strict=True):
            x = torch.relu(batch_norm(conv(x)))
        for block in self.blocks:
            x = block(x)
        features = x.mean((2, 3))
        return features, self.head(features)

    def places(self):
        """The layer that stands for each of ours, by its path."""
        for index in range(4):
            yield f"stem_conv_{index}", self.stem_convs[index]
            yield f"stem_norm_{index}", self.stem_norms[index]
        for name, block in zip(self.names, self.blocks, strict=True):
            for index in range(3):
                yield f"{name}.conv_{index}", block.convs[index]
                yield f"{name}.norm_{index}", block.norms[index]
            yield f"{name}.squeeze_excite.reduce", block.squeeze_excite.reduce
            yield f"{name}.squeeze_excite.expand", block.squeeze_excite.expand
            if block.shortcut is not None:
                yield f"{name}.shortcut_conv", block.shortcut.conv
                yield f"{name}.shortcut_norm", block.shortcut.norm
        yield "head", self.head


def norm(channels, momentum):
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=1 - momentum)


def load(module, path, weights):
    """Sets a layer of PyTorch's to ours at `path`; returns the names that it used."""
    names = {"weight": ("kernel", "scale"), "bias": ("bias",), "running_mean": ("mean",)}
    names["running_var"] = ("var",)
    used = []
    for theirs, tensor in module.state_dict().items():
        for ours in names.get(theirs, ()):
            for kind in ("params", "batch_stats"):
                key = f"{kind}.{path}.{ours}"
                if key in weights:
                    tensor.copy_(torch.tensor(transposed(weights[key], tensor.dim())))
                    used.append(key)
    return used


def transposed(kernel, dims):
    """[..., in, out] to [out, in, ...]; a dense layer may stand for a 1x1 convolution."""
    kernel = np.asarray(kernel)
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if kernel.ndim == 2:
        return kernel.T[:, :, None, None] if dims == 4 else kernel.T
    return kernel
