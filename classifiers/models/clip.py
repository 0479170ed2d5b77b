"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): images and texts in one space.

The published networks are a line each of `PRESETS`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from classifiers.models.clip_resnet import ClipResNet
from classifiers.models.clip_text import ClipTextEncoder
from classifiers.models.resnet import SIZES
from classifiers.models.vit import ViT
from launch.errors import InputError
from launch.runtime.layers.layers import Dense
from launch.runtime.layers.precision import precision_for
from launch.runtime.limits import building, make_module
from launch.runtime.types import Array

TOWERS: dict[str, type[ViT | ClipResNet]] = {"vit": ViT, "resnet": ClipResNet}


class Pairs(NamedTuple):
    """What a loss of images and texts is made of; features are of unit length."""

    images: Float[Array, "b d"]
    texts: Float[Array, "n d"]
    scale: Float[Array, ""]  # products of features times this, plus the bias, are logits
    bias: Float[Array, ""]

    def logits(self) -> Float[Array, "b n"]:
        """Logits of each image for each text."""
        return products(self.images, self.texts) * self.scale + self.bias


class Clip(nn.Module):
    """An image tower and a text tower, whose features lie in one space."""

    image: Any  # a `ViT` or a `ClipResNet`
    text: ClipTextEncoder  # its pooled states are the features of texts
    projection_width: int = 0  # from the image tower to the features; 0 for no projection
    sigmoid: bool = False  # a sigmoid per pair, with a bias (SigLIP), instead of a softmax
    dtype: Any = jnp.float32  # of the projection

    def setup(self) -> None:
        if self.projection_width:
            self.image_projection = Dense(self.projection_width, use_bias=False, dtype=self.dtype)
        # Radford et al. 2021, section 2.5 (0.07); Zhai et al. 2023, section 3.2 (10 and -10).
        start = math.log(10) if self.sigmoid else math.log(1 / 0.07)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(start), (1,))
        if self.sigmoid:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), (1,))

    def __call__(
        self, images: Float[Array, "b h w c"], tokens: Int[Array, "n length"], train: bool = False
    ) -> Pairs:
        """Features of images in [-1, 1] and of tokens, and how logits are made of them."""
        image_features = unit(self.encode_images(images, train))
        return Pairs(image_features, unit(self.encode_texts(tokens)), *self.head())

    def encode_images(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b d"]:
        """Features of images in [-1, 1], in float32, not of unit length."""
        features = self.image(images, train=train, features=True)
        if self.projection_width:
            features = self.image_projection(features)
        return features.astype(jnp.float32)

    def encode_texts(self, tokens: Int[Array, "n length"]) -> Float[Array, "n d"]:
        """Features of tokens, in float32, not of unit length."""
        return self.text(tokens).pooled.astype(jnp.float32)

    def head(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Scale and bias of the logits."""
        bias = self.logit_bias[0] if self.sigmoid else jnp.zeros(())
        return jnp.exp(self.logit_scale[0]), bias  # the parameter is log(scale)


def unit(features: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Features scaled to length 1."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def products(features: Float[Array, "b d"], others: Float[Array, "n d"]) -> Float[Array, "b n"]:
    """Products of all pairs of features, or of features and class weights."""
    # In full: TPUs would round to bfloat16, which a scale of up to 100 amplifies.
    return jnp.matmul(features, others.T, precision=precision_for(features.dtype))


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published network."""

    fields: dict[str, Any]  # as of `make`
    size: int = 224  # of its images, pixels each way


def _text(width: int, num_heads: int, **fields: Any) -> dict[str, Any]:
    layers = dict(num_layers=12, num_heads=num_heads)
    return dict(width=width, mlp_width=4 * width, **layers, **fields)


def _vit(
    width: int, depth: int, patch_size: int, out_width: int, text: dict[str, Any], size: int = 224
) -> Preset:
    image = dict(
        name="vit",
        width=width,
        depth=depth,
        num_heads=width // 64,  # 64 channels a head, as in all of them
        patch_size=patch_size,
        norm_eps=1e-5,  # OpenAI's; ViT has 1e-6
        activation="quick_gelu",
        pre_norm=True,
        patch_bias=False,
        pixels="clip",
    )
    text = text | dict(projection_width=out_width, activation="quick_gelu")
    return Preset(dict(image=image, text=text, projection_width=out_width), size)


# Zhai et al. 2023, B/16: big_vision's GELU is the tanh approximation, texts are not masked.
_SIGLIP_IMAGE = dict(
    name="vit", width=768, depth=12, num_heads=12, pool="probe", activation="gelu_tanh"
)
_SIGLIP_TEXT = _text(
    768,
    12,
    activation="gelu_tanh",
    projection_width=768,
    projection_bias=True,
    vocab_size=32000,
    max_length=64,
    pool="last",
    causal=False,
    norm_eps=1e-6,
)

# Width, depth, patch size, width of the features, text; Radford et al. 2021.
PRESETS = {
    "clip_vit_b32": _vit(768, 12, 32, 512, _text(512, 8)),
    "clip_vit_b16": _vit(768, 12, 16, 512, _text(512, 8)),
    "clip_vit_l14": _vit(1024, 24, 14, 768, _text(768, 12)),
    "clip_vit_l14_336": _vit(1024, 24, 14, 768, _text(768, 12), size=336),
    "clip_rn50": Preset(
        dict(
            image=dict(name="resnet", stage_sizes=SIZES[50], out_width=1024),
            text=_text(512, 8) | dict(projection_width=1024, activation="quick_gelu"),
        )
    ),
    "siglip_b16": Preset(dict(image=_SIGLIP_IMAGE, text=_SIGLIP_TEXT, sigmoid=True)),
}


def make(fields: Mapping[str, Any]) -> Clip:
    """The model of `config.clip`.

    `fields` may have `name`, a preset; `image`, the fields of its tower, whose `name` is one of
    `TOWERS`; `text`, those of `ClipTextEncoder`; and fields of `Clip`. `dtype` holds for all three.
    With a preset, only what differs from it is given.

    Raises:
        InputError: there is no such preset, tower or field, or a field has no or a wrong value.
    """
    # 1. The preset's fields, with those given over them.
    given = dict(fields)
    name = given.pop("name", "")
    if name and name not in PRESETS:
        raise InputError(f"clip.name must be one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name].fields if name else {}
    image, text = (
        {**preset.get(tower, {}), **(given.pop(tower, None) or {})} for tower in ("image", "text")
    )
    own = {**{k: v for k, v in preset.items() if k not in ("image", "text")}, **given}
    dtype = jnp.dtype(own.pop("dtype", "float32"))
    # 2. The towers, then what joins them.
    kind = TOWERS.get(image.pop("name", ""))
    if kind is None:
        raise InputError(f"clip.image.name must be one of {', '.join(TOWERS)}; set one of these")
    if kind is ViT:
        image["num_classes"] = 1  # the head is never made
    image_tower = _module(kind, image, dtype, "clip.image")
    text_tower = _module(ClipTextEncoder, text, dtype, "clip.text")
    _check_known(Clip, own, "clip")
    towers = dict(image=image_tower, text=text_tower)
    return make_module(Clip, {**own, **towers, "dtype": dtype}, "clip")


def _module(kind: type, fields: dict[str, Any], dtype: Any, field: str) -> Any:
    _check_known(kind, fields, field)
    for entry in dataclasses.fields(kind):
        if entry.default is dataclasses.MISSING and entry.name not in fields and entry.init:
            if entry.name not in ("parent", "name"):
                raise InputError(f"{field}.{entry.name} is missing; set it, or choose a preset")
    # Flax hashes modules under jit, and lists have no hash.
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    return make_module(kind, {**values, "dtype": dtype}, field)


def _check_known(kind: type, fields: Mapping[str, Any], field: str) -> None:
    known = {entry.name for entry in dataclasses.fields(kind)} - {"parent", "name", "dtype"}
    if unknown := sorted(set(fields) - known):
        names = ", ".join(sorted(known))
        raise InputError(f"{field} has no field {unknown[0]!r}; use {names}")


def describe(model: Clip) -> dict[str, Any]:
    """The fields from which `make` makes this model, without those at their defaults."""
    (name,) = (name for name, kind in TOWERS.items() if type(model.image) is kind)
    towers = dict(image={"name": name, **_set_fields(model.image)}, text=_set_fields(model.text))
    return {**_set_fields(model), **towers, "dtype": jnp.dtype(model.dtype).name}


def _set_fields(module: nn.Module) -> dict[str, Any]:
    others = ("parent", "name", "dtype", "num_classes", "image", "text")
    return {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in others and getattr(module, field.name) != field.default
    }


def variable_shapes(model: Clip, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes of the variables for images [h, w, c]; raises InputError if fields do not fit."""
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    tokens = jax.ShapeDtypeStruct((1, model.text.max_length), "int32")
    with building("clip"):
        return jax.eval_shape(model.init, jax.random.key(0), image, tokens)
