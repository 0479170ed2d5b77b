"""Names and shapes of a classifier's tensors in other libraries' files, for both ways.

transformers: ViTForImageClassification, DeiTForImageClassification (and WithTeacher),
ResNetForImageClassification, as they are on disk. timm: VisionTransformer and its children.
torchvision: ResNet, whose names timm's has too.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from classifiers.models.presets import Classifier
from classifiers.models.resnet import ResNet
from classifiers.models.vit import ViT
from launch.errors import InputError

LAYOUTS = ("transformers", "timm", "torchvision")
# Counts that PyTorch's batch norms keep and nothing here reads.
COUNTER = "num_batches_tracked"

# (pattern in our dotted path, what is written for it), applied in order.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

_ENDS: Rules = (
    (r"^(params|batch_stats)\.", ""),
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.(mean|var)$", r".running_\1"),
)
_BLOCK = r"^block_(\d+)\."


def _vit_transformers(model: ViT) -> Rules:
    prefix = "deit" if model.distillation else "vit"
    layer = rf"{prefix}.encoder.layer.\1."
    return (
        *_ENDS,
        (rf"{_BLOCK}(query|key|value)\.", rf"{layer}attention.attention.\2."),
        (rf"{_BLOCK}out\.", f"{layer}attention.output.dense."),
        (rf"{_BLOCK}norm_1\.", f"{layer}layernorm_before."),
        (rf"{_BLOCK}norm_2\.", f"{layer}layernorm_after."),
        (rf"{_BLOCK}mlp_1\.", f"{layer}intermediate.dense."),
        (rf"{_BLOCK}mlp_2\.", f"{layer}output.dense."),
        (r"^norm\.", f"{prefix}.layernorm."),
        (r"^patch_embed\.", f"{prefix}.embeddings.patch_embeddings.projection."),
        (r"^class_token$", f"{prefix}.embeddings.cls_token"),
        (r"^distillation_token$", f"{prefix}.embeddings.distillation_token"),
        (r"^positions$", f"{prefix}.embeddings.position_embeddings"),
        (r"^head\.", "cls_classifier." if model.distillation == "heads" else "classifier."),
        (r"^head_dist\.", "distillation_classifier."),
    )


_VIT_TIMM: Rules = (
    *_ENDS,
    (rf"{_BLOCK}(query|key|value)\.", r"blocks.\1.attn.qkv."),
    (rf"{_BLOCK}out\.", r"blocks.\1.attn.proj."),
    (rf"{_BLOCK}norm_(\d)\.", r"blocks.\1.norm\2."),
    (rf"{_BLOCK}mlp_(\d)\.", r"blocks.\1.mlp.fc\2."),
    (rf"{_BLOCK}scale_(\d)$", r"blocks.\1.ls\2.gamma"),
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^distillation_token$", "dist_token"),
    (r"^positions$", "pos_embed"),
)
_STAGE = r"^stage_(\d+)_block_(\d+)\."
_RESNET_TRANSFORMERS: Rules = (
    *_ENDS,
    (_STAGE, r"resnet.encoder.stages.\1.layers.\2."),
    (r"\.(conv|norm)_(\d)\.", r".layer.\2.\1."),
    (r"\.shortcut_(conv|norm)\.", r".shortcut.\1."),
    (r"^stem_(conv|norm)\.", r"resnet.embedder.embedder.\1."),
    (r"\.conv\.", ".convolution."),
    (r"\.norm\.", ".normalization."),
    (r"^head\.", "classifier.1."),
)
_RESNET_TORCHVISION: Rules = (
    *_ENDS,
    (_STAGE, lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
    (r"\.conv_(\d)\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.norm_(\d)\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut_conv\.", ".downsample.0."),
    (r"\.shortcut_norm\.", ".downsample.1."),
    (r"^stem_conv\.", "conv1."),
    (r"^stem_norm\.", "bn1."),
    (r"^head\.", "fc."),
)
_FUSED = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file, and what of ours it holds.

    Attributes:
        paths: dotted, of our arrays; several lie one after the other along the file's first axis.
        shape: of each of ours.
        axes: axis i of the file is our axis `axes[i]`.
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        shape = tuple(self.shape[axis] for axis in self.axes)
        return (len(self.paths) * shape[0], *shape[1:]) if len(self.paths) > 1 else shape

    def to_ours(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Our arrays, by path."""
        parts = np.split(array, len(self.paths)) if len(self.paths) > 1 else [array]
        ours = (part.transpose(np.argsort(self.axes)) for part in parts)
        return dict(zip(self.paths, ours, strict=True))

    def to_file(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The file's tensor, of our arrays by path."""
        parts = [np.asarray(arrays[path]).transpose(self.axes) for path in self.paths]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def entries(model: Classifier, shapes: Mapping[str, Any], layout: str) -> dict[str, Entry]:
    """What a file of the layout holds of a model, by the file's names.

    Args:
        model: the network.
        shapes: its variables or their shapes, nested.
        layout: one of `LAYOUTS`.

    Raises:
        InputError: the layout has no such model.
    """
    rules = _rules(model, layout)
    found: dict[str, Entry] = {}
    # Of fused tensors the parts are in the order of _FUSED, not of the alphabet.
    flat = flax.traverse_util.flatten_dict(shapes, sep=".").items()
    for path, leaf in sorted(flat, key=lambda item: _order(item[0])):
        name = path
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        shape = tuple(leaf.shape)
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}[len(shape)] if path.endswith(".kernel") else None
        paths = (*found[name].paths, path) if name in found else (path,)
        found[name] = Entry(paths, shape, axes or tuple(range(len(shape))))
    return found


def _order(path: str) -> int:
    part = path.split(".")[-2]
    return _FUSED.index(part) if part in _FUSED else 0


def _rules(model: Classifier, layout: str) -> Rules:
    if isinstance(model, ViT):
        if layout == "transformers":
            plain = model.pool == "token" and model.positions == "learned"
            _need(plain and model.layer_scale is None, layout, "pooling, positions and layer scale")
            return _vit_transformers(model)
        _need(layout == "timm", layout, "a vision transformer")
        _need(model.distillation != "token", layout, "a distillation token without its head")
        return _VIT_TIMM
    _need(isinstance(model, ResNet), layout, "squeeze-and-excitation")
    _need(not model.auxiliary_batch_norm, layout, "batch norms of synthetic images")
    _need(not model.small_stem, layout, "the stem for small images")
    return _RESNET_TRANSFORMERS if layout == "transformers" else _RESNET_TORCHVISION


def _need(there: bool, layout: str, what: str) -> None:
    if not there:
        raise InputError(f"weights in {layout}'s layout: it has no model with {what} of this kind")
