"""Vision transformers: ViT, plain ViT, DeiT and DeiT III, which differ in the fields of one module.

ViT is Dosovitskiy et al. 2021 (class token, learned positions); plain ViT Beyer et al. 2022 (mean
of all tokens, fixed positions); DeiT Touvron et al. 2021 (drop path, and a distillation token if
asked for); DeiT III Touvron et al. 2022 (layer scale, positions for patches only).
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from classifiers.models.attention_pool import ProbePool
from classifiers.models.dropout import check_rates, drop_path, dropout
from launch.errors import InputError
from launch.runtime.devices.mesh import split_batch
from launch.runtime.layers.cpu_kernels import add_branch
from launch.runtime.layers.layers import Conv, Dense, activation, attend, normalise_pixels
from launch.runtime.types import Array

POSITIONS = ("learned", "learned_patches", "sincos")
POOLS = ("token", "mean", "probe")
DISTILLATIONS = ("", "token", "heads")
_INIT = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """A vision transformer for images of any size that its patches divide.

    There are as many learned positions as images have patches when the variables are made;
    `classifiers.weights` resizes them.
    """

    num_classes: int
    width: int
    depth: int
    num_heads: int
    patch_size: int = 16
    mlp_dim: int | None = None  # of the hidden layer; None is four times the width
    # 'learned', 'learned_patches' (none for the class token), 'sincos' (fixed).
    positions: str = "learned"
    # What the head sees: the class 'token', the 'mean' of all patches, which then has no class
    # token, or what a learned 'probe' finds in them (SigLIP).
    pool: str = "token"
    # 'token' adds DeiT's second token, 'heads' its head too. Logits are then the mean of both
    # heads, in training as well: there is no teacher here.
    distillation: str = ""
    layer_scale: float | None = None  # initial gain of the branches; None for no scale
    dropout: float = 0.0  # after positions, attention and both layers of the MLPs
    # Rate at which an image skips a branch of the last block; it rises linearly from 0 in the
    # first (Huang et al. 2016, section 3).
    drop_path: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"  # of `layers.ACTIVATIONS`
    pre_norm: bool = False  # a norm before the first block as well (CLIP)
    patch_bias: bool = True  # of the patch embedding; CLIP's has none
    pixels: str = "plain"  # what the weights expect, see `layers.PIXELS`
    remat: bool = False  # blocks keep only their input for the backward pass
    # Of the computation; parameters, norms, softmax and logits are float32.
    dtype: Any = jnp.float32

    @property
    def num_tokens(self) -> int:
        """How many tokens come before those of the patches."""
        return (self.pool == "token") + bool(self.distillation)

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False, features: bool = False
    ) -> Float[Array, "b classes"]:
        """Logits of images in [-1, 1]; sows `spatial` [b, h, w, d] and `features` [b, d].

        `features` returns what the head sees instead, [b, d]; with 'heads' that is the class token.

        Raises:
            InputError: a field has no such value, or patches do not divide the images.
        """
        # 1. Images to tokens: [b, n, d], with the class and distillation tokens first.
        self._check(images.shape)
        x = self._embed(normalise_pixels(images, self.pixels), train)
        if self.pre_norm:
            x = _norm(self.norm_eps, "pre_norm")(x).astype(self.dtype)
        # 2. Blocks.
        block = nn.remat(Block) if self.remat else Block
        for index in range(self.depth):
            x = block(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim or 4 * self.width,
                layer_scale=self.layer_scale,
                dropout=self.dropout if train else 0.0,
                drop_path=self.drop_path * index / max(1, self.depth - 1) if train else 0.0,
                norm_eps=self.norm_eps,
                activation=self.activation,
                dtype=self.dtype,
                name=f"block_{index}",
            )(x)
        # 3. Features, then logits.
        x = _norm(self.norm_eps, "norm")(x)
        grid = (size // self.patch_size for size in images.shape[1:3])
        self.sow("intermediates", "spatial", x[:, self.num_tokens :].reshape(len(x), *grid, -1))
        pooled = self._pool(x)
        self.sow("intermediates", "features", pooled)
        if features:
            return pooled
        # A head of zeros: training starts from equal probabilities, as in big_vision.
        head = functools.partial(Dense, self.num_classes, kernel_init=nn.initializers.zeros)
        logits = head(name="head")(pooled)
        if self.distillation == "heads":
            logits = (logits + head(name="head_dist")(x[:, 1])) / 2
        return logits

    def _pool(self, x: Array) -> Float[Array, "b d"]:
        if self.pool == "probe":
            return ProbePool(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim or 4 * self.width,
                norm_eps=self.norm_eps,
                activation=self.activation,
                dtype=self.dtype,
                name="probe_pool",
            )(x)
        return x[:, 0] if self.pool == "token" else x.mean(axis=1)

    def _embed(self, images: Array, train: bool) -> Float[Array, "b n d"]:
        size = (self.patch_size, self.patch_size)
        init = nn.initializers.lecun_normal()
        embed = Conv(
            self.width,
            size,
            size,
            "VALID",
            use_bias=self.patch_bias,
            kernel_init=init,
            dtype=self.dtype,
            name="patch_embed",
        )
        x = embed(images)
        _, rows, columns, width = x.shape
        x = x.reshape(-1, rows * columns, width)  # [b, h, w, d] to [b, n, d]
        # Positions of class and distillation tokens come first, in DeiT III there are none.
        of_tokens = self.num_tokens if self.positions == "learned" else 0
        if self.positions == "sincos":
            positions = jnp.asarray(sincos_positions(rows, columns, width))
        else:
            shape = (1, of_tokens + rows * columns, width)
            positions = self.param("positions", _INIT, shape)
        # In float32, since learned positions start small (0.02).
        x = x.astype(jnp.float32) + positions[:, of_tokens:]
        tokens = []
        for index, name in enumerate(self._token_names()):
            token = self.param(name, _INIT, (1, 1, width))
            if of_tokens:
                token = token + positions[:, index : index + 1]
            tokens.append(jnp.broadcast_to(token, (x.shape[0], 1, width)))
        x = jnp.concatenate([*tokens, x], axis=1).astype(self.dtype)
        # Pins the batch to the mesh, so that XLA does not replicate activations inside.
        return split_batch(dropout(x, self.dropout, train))

    def _token_names(self) -> list[str]:
        names = ["class_token"] if self.pool == "token" else []
        return [*names, "distillation_token"] if self.distillation else names

    def _check(self, shape: tuple[int, ...]) -> None:
        choices = (
            ("positions", POSITIONS), ("pool", POOLS), ("distillation", DISTILLATIONS)
        )  # fmt: skip
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                names = ", ".join(map(repr, allowed))
                raise InputError(
                    f"model.{name} must be one of {names}, got {getattr(self, name)!r}"
                )
        check_rates(dropout=self.dropout, drop_path=self.drop_path)
        if self.distillation and self.pool != "token":
            raise InputError(
                f"model.distillation={self.distillation!r} needs the class token; set pool='token'"
            )
        if self.width % self.num_heads:
            raise InputError(
                f"model.width must be a multiple of model.num_heads={self.num_heads}, got "
                f"{self.width}"
            )
        if shape[1] % self.patch_size or shape[2] % self.patch_size:
            raise InputError(
                f"images must be a multiple of model.patch_size={self.patch_size} pixels "
                f"each way, got {shape[1]}x{shape[2]}"
            )


class Block(nn.Module):
    """A pre-norm block: attention, then an MLP, each added to its input.

    Its rates are 0 outside training; other fields are as in `ViT`.
    """

    num_heads: int
    mlp_dim: int
    layer_scale: float | None
    dropout: float
    drop_path: float
    norm_eps: float
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        h = _norm(self.norm_eps, "norm_1")(x).astype(self.dtype)
        x = add_branch(x, self._branch(self._attention(h), "scale_1"))
        h = _norm(self.norm_eps, "norm_2")(x).astype(self.dtype)
        h = self._drop(activation(self.activation)(self._dense(self.mlp_dim, "mlp_1")(h)))
        h = self._dense(x.shape[-1], "mlp_2")(h)
        return split_batch(add_branch(x, self._branch(h, "scale_2")))

    def _attention(self, x: Array) -> Array:
        # [b, n, d] to [b, n, heads, d / heads], and back.
        heads = (*x.shape[:2], self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = (
            self._dense(x.shape[-1], name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        return self._dense(x.shape[-1], "out")(attend(query, key, value).reshape(x.shape))

    def _branch(self, h: Array, name: str) -> Array:
        h = self._drop(h)
        if self.layer_scale is not None:
            init = nn.initializers.constant(self.layer_scale)
            scale = self.param(name, init, (h.shape[-1],))
            h = h * scale.astype(h.dtype)[None, None]
        return drop_path(h, self.drop_path, train=True)

    def _drop(self, h: Array) -> Array:
        return dropout(h, self.dropout, train=True)

    def _dense(self, width: int, name: str) -> nn.Module:
        init = nn.initializers.xavier_uniform()
        return Dense(width, kernel_init=init, dtype=self.dtype, name=name)


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    # E[x^2] - E[x]^2, Flax's faster variance, would lose digits.
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


@functools.cache
def sincos_positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "1 n width"]:
    """Fixed positions of patches, row by row: sines and cosines of x, then of y.

    Raises:
        InputError: the width is not a multiple of 4.
    """
    if width % 4:
        raise InputError(f"model.width must be a multiple of 4 for fixed positions, got {width}")
    y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    # Beyer et al. 2022, section 2 (after MoCo v3): periods of 2 pi to 2 pi * 10,000 patches.
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    angles = [x * frequencies, y * frequencies]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1, dtype=np.float32)[None]


def resize_positions(
    positions: Float[Array, "1 n d"],
    num_tokens: int,
    old: tuple[int, int],
    new: tuple[int, int],
    offset: float = 0.0,
) -> Float[np.ndarray, "1 m d"]:
    """Learned positions for another number of patches: bicubic, as DeiT and transformers do it.

    The first `num_tokens` rows stay; patches lie row by row. `old` and `new` are [rows, columns].
    `offset` spreads the old patches over so many more than `new`, as DINOv2's code does.
    """
    # Keys' kernel with a = -0.75, pixel centres aligned, and no wider kernel when there are fewer
    # patches. (timm has a = -0.5, and widens it.)
    positions = np.asarray(positions, np.float32)
    if tuple(old) == tuple(new):
        return positions
    tokens, patches = positions[:, :num_tokens], positions[:, num_tokens:]
    vertical, horizontal = (_bicubic(*sizes, offset) for sizes in zip(old, new, strict=True))
    # [n, d] to [rows, columns, d]; the kernel is separable, so one matrix for each way.
    grid = patches[0].reshape(*old, -1).astype(np.float64)
    grid = np.einsum("ij,kl,jld->ikd", vertical, horizontal, grid, optimize=True)
    resized = grid.reshape(1, -1, patches.shape[-1]).astype(np.float32)
    return np.concatenate([tokens, resized], axis=1)


def _bicubic(old: int, new: int, offset: float) -> Float[np.ndarray, "new old"]:
    """The share of each old position in each new one; the border is continued outwards."""
    a = -0.75  # Keys 1981, Eq. 15, with a free
    centres = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        neighbours = np.floor(centres).astype(int) + offset
        t = np.abs(centres - neighbours)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        values = np.where(t <= 1, near, far)
        np.add.at(weights, (np.arange(new), np.clip(neighbours, 0, old - 1)), values)
    return weights
