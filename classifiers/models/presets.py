"""The models by name, one line each, and modules whose fields a config gives.

deit_b_384 is deit_b for larger images: more patches, the same fields.
DeiT III's official code drops paths of all blocks at one rate; ours rises linearly, as timm's.
"""

import dataclasses
from typing import Any

import jax

from classifiers.models.efficientnet_lite import EfficientNetLite
from classifiers.models.resnet import SIZES, ResNet
from classifiers.models.resnet_rs import SIZES as RS_SIZES
from classifiers.models.resnet_rs import ResNetRS
from classifiers.models.vit import ViT
from launch.errors import InputError
from launch.runtime.limits import building, make_module

Classifier = EfficientNetLite | ResNet | ResNetRS | ViT
MODULES: dict[str, type[Classifier]] = {
    "resnet": ResNet,
    "resnet_rs": ResNetRS,
    "vit": ViT,
    "efficientnet_lite": EfficientNetLite,
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A row of the table."""

    module: type[Classifier]
    fields: dict[str, Any]  # that are not at their defaults
    size: int | None = None  # of its images, pixels each way; None: 224, or that of the weights


def _resnet(depth: int) -> Preset:
    return Preset(ResNet, dict(stage_sizes=SIZES[depth]))


def _resnet_rs(depth: int, **fields: Any) -> Preset:
    return Preset(ResNetRS, dict(stage_sizes=RS_SIZES[depth], **fields))


def _vit(width: int, depth: int, num_heads: int, **fields: Any) -> Preset:
    return Preset(ViT, dict(width=width, depth=depth, num_heads=num_heads, **fields))


# Beyer et al. 2022.
_PLAIN = dict(positions="sincos", pool="mean")
# Touvron et al. 2022 (DeiT III).
_DEIT_III = dict(positions="learned_patches", layer_scale=1e-4)

PRESETS = {
    "resnet50": _resnet(50),
    "resnet101": _resnet(101),
    "resnet152": _resnet(152),
    "resnet_rs_50": _resnet_rs(50),
    "resnet_rs_101": _resnet_rs(101),
    "resnet_rs_152": _resnet_rs(152),
    "resnet_rs_350": _resnet_rs(350),
    "vit_s16": _vit(384, 12, 6, **_PLAIN),
    "vit_b16": _vit(768, 12, 12),
    "vit_l16": _vit(1024, 24, 16),
    "deit_s": _vit(384, 12, 6, drop_path=0.1),
    "deit_b": _vit(768, 12, 12, drop_path=0.1),
    "deit_b_384": dataclasses.replace(_vit(768, 12, 12, drop_path=0.1), size=384),
    "deit_l": _vit(1024, 24, 16, drop_path=0.45, **_DEIT_III),
    "efficientnet_lite0": Preset(EfficientNetLite, {}),
}


def make(name: str, num_classes: int, /, **overrides: Any) -> Classifier:
    """The model `name`, a row of `PRESETS` or of `MODULES`, with fields overridden.

    Raises:
        InputError: there is no such model, it has no such field, or one has no or a wrong value.
    """
    if name not in PRESETS and name not in MODULES:
        names = ", ".join((*MODULES, *PRESETS))
        raise InputError(f"model.name must be one of {names}, got {name!r}")
    preset = PRESETS.get(name) or Preset(MODULES[name], {})
    fields = {field.name: field for field in dataclasses.fields(preset.module)}
    for own in ("parent", "name", "num_classes"):  # not for configs
        del fields[own]
    if unknown := sorted(set(overrides) - set(fields)):
        names = ", ".join(sorted(fields))
        raise InputError(f"model {name!r} has no field {unknown[0]!r}; use {names}")
    values = preset.fields | overrides
    for field, entry in fields.items():
        if field not in values and entry.default is dataclasses.MISSING:
            raise InputError(f"model {name!r} needs model.{field}")
    values["num_classes"] = num_classes
    model: Classifier = make_module(preset.module, values, "model")
    return model


def variable_shapes(model: Classifier, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes of the variables for images [h, w, c]; raises InputError if fields do not fit."""
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    with building("model"):
        return jax.eval_shape(model.init, jax.random.key(0), image)
