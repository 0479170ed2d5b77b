"""Layers of all networks: Dense and Conv that state how their kernels travel, and attention.

Kernels are gathered over fsdp and stay split over tensor. The layers live here because U-Nets and
classifiers share them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float

from launch.errors import InputError
from launch.runtime.devices.hardware import cuda_capability
from launch.runtime.devices.mesh import platform, state_spec
from launch.runtime.layers import cpu_kernels
from launch.runtime.layers.precision import products_of
from launch.runtime.types import Array

Kernel = Float[Array, "*inputs outputs"]
# AMD's GPUs are 'gpu' as well, or 'rocm'.
_GPUS = ("gpu", "rocm")
# Queries times keys from which attention in float32 on a CPU has the heads in front.
_MIDDLE_ON_CPU = 2**12
# And from which it goes head by head.
LARGE_ON_CPU = 2**16
# (mean, std) of pixels in [0, 1] by channel, which published weights expect to be normalised by.
PIXELS = {
    "plain": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # Google's ViT; what we train: [-1, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision, DeiT
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "efficientnet_lite": ((127 / 255,) * 3, (128 / 255,) * 3),
}


# The identity: gathers the kernel over fsdp forward, splits its gradient backward.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh: AbstractMesh, kernel: Kernel) -> Kernel:
    axes = (axis if axis == "tensor" else None for axis in state_spec(mesh, kernel))
    return jax.lax.with_sharding_constraint(kernel, P(*axes))


def _forward(mesh: AbstractMesh, kernel: Kernel) -> tuple[Kernel, None]:
    return _gather(mesh, kernel), None


def _backward(mesh: AbstractMesh, _: None, gradient: Kernel) -> tuple[Kernel]:
    # Split at once (reduce-scatter): a device only needs the part of the gradient that it keeps.
    return (jax.lax.with_sharding_constraint(gradient, state_spec(mesh, gradient)),)


_gather.defvjp(_forward, _backward)


def _promote(
    inputs: Array, kernel: Kernel, bias: Array | None, *, dtype: Any = None, **options: Any
) -> tuple[Array | None, ...]:
    # Cast all three, then gather the kernel: in half precision half the bytes travel.
    inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=dtype, **options)
    # Stated explicitly: with data, fsdp and tensor all split, XLA's partitioner chooses by itself,
    # and some of its choices give wrong gradients.
    mesh = jax.sharding.get_abstract_mesh()
    return inputs, kernel if mesh.size <= 1 else _gather(mesh, kernel), bias


# Flax types the function as taking any number of arrays, but the layers pass exactly these three.
_promotes: Any = _promote
Dense = functools.partial(nn.Dense, promote_dtype=_promotes, dot_general=cpu_kernels.dot_general)
Conv = functools.partial(
    nn.Conv, promote_dtype=_promotes, conv_general_dilated=cpu_kernels.convolve
)


def attend(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
) -> Float[Array, "b n heads d"]:
    """Attention with its softmax in float32, in the form that suits the platform best."""
    # softmax(q k^T / sqrt(d)) v, for each head (Vaswani et al. 2017, Eq. 1)
    # Not lax.platform_dependent: it traces every form, and cuDNN's fails to trace without cuDNN.
    here = platform()
    pairs = query.shape[1] * key.shape[1]
    if here == "cpu" and pairs >= LARGE_ON_CPU:
        return _attend_by_head(query, key, value)
    alike = query.dtype == key.dtype == jnp.float32 and query.shape[2] == key.shape[2]
    if here == "cpu" and pairs >= _MIDDLE_ON_CPU and alike:
        return cpu_kernels.attend(query, key, value)
    if here == "gpu" and _suits_cudnn(query):
        even = query.shape[1] % 2 == key.shape[1] % 2 == 0
        return (_attend_by_cudnn if even else _attend_by_cudnn_forward)(query, key, value)
    return attend_plainly(query, key, value)


def _suits_cudnn(query: Array) -> bool:
    # cuDNN's kernel never writes the [n, m] weights to memory. It needs half precision, a head size
    # that it knows and at least Ampere, and has no plan for the gradient of a single query.
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = query.shape[-1] <= 128 and query.shape[-1] % 8 == 0
    return half and fits and query.shape[1] >= 2 and _is_from_ampere_on()


def _is_from_ampere_on() -> bool:
    # Ampere (A100) has compute capability 8.0.
    if jax.default_backend() not in _GPUS:
        return True  # compiling for GPUs that are not here
    capability = cuda_capability(jax.local_devices()[0])
    return capability is not None and capability >= (8, 0)


def attend_plainly(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    bias: Float[Array, "#b heads #n #m"] | None = None,
    mask: Bool[Array, "#b #heads #n #m"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b n heads d"]:
    """Attention as two products around a softmax in float32, on any platform.

    `bias` is added to the logits, `mask` is True for keys that exist, and `scale` multiplies the
    logits (None: 1 / sqrt(d)).
    """
    # 1. Half precisions that JAX's own form cannot compile.
    if query.dtype == jnp.float16 or (
        query.dtype == jnp.bfloat16 and platform() in _GPUS and not _is_from_ampere_on()
    ):
        return _attend_by_any_algorithm(query, key, value, bias, mask, scale)
    # 2. JAX's own form.
    with products_of(query.dtype):
        return jax.nn.dot_product_attention(
            query, key, value, bias, mask, scale=scale, implementation="xla"
        )


def _attend_by_any_algorithm(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    scale: float | None,
) -> Array:
    # `jax.nn.dot_product_attention` names the first product's algorithm, one that CPUs and TPUs
    # lack for float16, and GPUs before Ampere for bfloat16. This is the same without the name.
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    if mask is not None:
        # A finite minimum: a row where all is masked gives no NaN.
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(jnp.float32).min)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits).astype(value.dtype), value)


def _attend_by_cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


# JAX allows cuDNN an odd number of queries or keys (77 tokens of text before pixels) only where
# there is no gradient, so the gradient is that of the plain form.
_attend_by_cudnn_forward = jax.custom_vjp(_attend_by_cudnn)
_Gradient = Callable[[Array], tuple[Array, ...]]


def _odd_forward(query: Array, key: Array, value: Array) -> tuple[Array, _Gradient]:
    return jax.vjp(attend_plainly, query, key, value)


def _odd_backward(gradient_of: _Gradient, gradient: Array) -> tuple[Array, ...]:
    return gradient_of(gradient)


_attend_by_cudnn_forward.defvjp(_odd_forward, _odd_backward)


def _attend_by_head(query: Array, key: Array, value: Array) -> Array:
    # One head of one image at a time, so that the weights fit a CPU's cache: 4 times as fast.
    b, n, heads, d = query.shape
    # [b, n, heads, d] to [b * heads, n, d]
    split = lambda x: x.transpose(0, 2, 1, 3).reshape(b * heads, -1, d)  # noqa: E731

    def attend_head(inputs: tuple[Array, Array, Array]) -> Array:
        q, k, v = inputs
        logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) * d**-0.5
        return jax.nn.softmax(logits).astype(v.dtype) @ v

    out = jax.lax.map(attend_head, (split(query), split(key), split(value)))  # [b * heads, n, d]
    return out.reshape(b, heads, n, d).transpose(0, 2, 1, 3)


def gelu(x: Array) -> Array:
    """The exact gelu, x Phi(x) (Hendrycks & Gimpel 2016); on CPU erf costs a third of erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation of gelu that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


# Weights are worthless with another activation than they were trained with.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": _gelu_tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The entry of `ACTIVATIONS`; raises `InputError` if there is none."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    # Computed again in the backward pass: a CPU's programs would keep two more arrays of this size,
    # the largest of a block.
    on_cpu = platform() == "cpu"
    return jax.checkpoint(ACTIVATIONS[name]) if on_cpu else ACTIVATIONS[name]


def normalise_pixels(images: Float[Array, "b h w c"], pixels: str) -> Float[Array, "b h w c"]:
    """From [-1, 1] to the scale that a network's weights were trained with.

    `pixels` is a key of `PIXELS` ('plain' changes nothing), else `InputError`; so are images that
    are not RGB.
    """
    if pixels not in PIXELS:
        raise InputError(f"model.pixels must be one of {', '.join(PIXELS)}, got {pixels!r}")
    if pixels == "plain":
        return images
    if images.shape[-1] != 3:
        raise InputError(
            f"model.pixels={pixels!r} needs RGB images, got {images.shape[-1]} channels"
        )
    mean, std = (jnp.asarray(values)[None, None, None] for values in PIXELS[pixels])
    return ((images + 1) / 2 - mean) / std
