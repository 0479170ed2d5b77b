"""What all networks are made of: Dense and Conv that say how their kernels travel, attention.

Kernels are used whole over fsdp and split over tensor. The U-Nets take these layers from here, as
`classifiers.models` is the lower room.
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
# AMD's are 'gpu' as well, or of a name of their own.
_GPUS = ("gpu", "rocm")
# Queries times keys from which on a CPU attends head by head.
LARGE_ON_CPU = 2**16
# What published weights take from a pixel in [0, 1], and by what they divide, channel by channel.
PIXELS = {
    "plain": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # Google's ViT; what we train: [-1, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision, DeiT
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "efficientnet_lite": ((127 / 255,) * 3, (128 / 255,) * 3),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh: AbstractMesh, kernel: Kernel) -> Kernel:
    axes = (axis if axis == "tensor" else None for axis in state_spec(mesh, kernel))
    return jax.lax.with_sharding_constraint(kernel, P(*axes))


def _forward(mesh: AbstractMesh, kernel: Kernel) -> tuple[Kernel, None]:
    return _gather(mesh, kernel), None


def _backward(mesh: AbstractMesh, _: None, gradient: Kernel) -> tuple[Kernel]:
    # Split at once: what a device does not keep of a gradient need not reach it.
    return (jax.lax.with_sharding_constraint(gradient, state_spec(mesh, gradient)),)


_gather.defvjp(_forward, _backward)


def _promote(
    inputs: Array, kernel: Kernel, bias: Array | None, *, dtype: Any = None, **options: Any
) -> tuple[Array | None, ...]:
    """Casts all three, and then gathers the kernel: in half precision half the bytes travel.

    Gathering is said and not left to XLA's partitioner. Where data, fsdp and tensor are all split
    it would otherwise find ways of its own, some with wrong gradients.
    """
    inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=dtype, **options)
    mesh = jax.sharding.get_abstract_mesh()
    return inputs, kernel if mesh.size <= 1 else _gather(mesh, kernel), bias


# Flax's type of the function is one of any number of arrays, but the layers give it these three.
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
    """Attention with a softmax in float32, implemented as the platform likes it best.

    The platform is that of the mesh in use (`jax.set_mesh`), else JAX's default.
    """
    # Not lax.platform_dependent: it traces every form, and cuDNN's cannot be traced where there is
    # no cuDNN.
    here = platform()
    if here == "cpu" and query.shape[1] * key.shape[1] >= LARGE_ON_CPU:
        return _attend_by_head(query, key, value)
    if here == "gpu" and _suits_cudnn(query):
        even = query.shape[1] % 2 == key.shape[1] % 2 == 0
        return (_attend_by_cudnn if even else _attend_by_cudnn_forward)(query, key, value)
    return attend_plainly(query, key, value)


def _suits_cudnn(query: Array) -> bool:
    """Whether cuDNN's kernel, which never writes the [n, m] weights to memory, takes this query.

    It knows half precision, some sizes of heads and no GPU before Ampere; for the gradient of a
    single query it has no plan.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = query.shape[-1] <= 128 and query.shape[-1] % 8 == 0
    return half and fits and query.shape[1] >= 2 and _is_from_ampere_on()


def _is_from_ampere_on() -> bool:
    """Whether the GPU is NVIDIA's and at least of the generation of the A100."""
    if jax.default_backend() not in _GPUS:
        return True  # a program for GPUs that are not here
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
    """Attention by products and a softmax in float32, on any platform.

    Args:
        query: what attends.
        key: what it attends to.
        value: what it takes from there.
        bias: added to the logits.
        mask: which keys there are.
        scale: of the logits; None is that of the head's size.
    """
    if query.dtype == jnp.float16 or (
        query.dtype == jnp.bfloat16 and platform() in _GPUS and not _is_from_ampere_on()
    ):
        return _attend_by_any_algorithm(query, key, value, bias, mask, scale)
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
    """As JAX's own, which asks for the algorithm of the first product by its name.

    Float16's is unknown to CPUs and TPUs, and bfloat16's to GPUs before Ampere: compiling fails.
    """
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(jnp.float32).min)  # no NaN where all is
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits).astype(value.dtype), value)


def _attend_by_cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


# An odd number of queries or keys (77 of a text before those of the pixels) is allowed by JAX
# where there is no gradient.
_attend_by_cudnn_forward = jax.custom_vjp(_attend_by_cudnn)
_Gradient = Callable[[Array], tuple[Array, ...]]


def _odd_forward(query: Array, key: Array, value: Array) -> tuple[Array, _Gradient]:
    return jax.vjp(attend_plainly, query, key, value)


def _odd_backward(gradient_of: _Gradient, gradient: Array) -> tuple[Array, ...]:
    return gradient_of(gradient)


_attend_by_cudnn_forward.defvjp(_odd_forward, _odd_backward)


def _attend_by_head(query: Array, key: Array, value: Array) -> Array:
    """One head of one image at a time: its weights stay in a CPU's cache (4 times as fast)."""
    b, n, heads, d = query.shape
    split = lambda x: x.transpose(0, 2, 1, 3).reshape(b * heads, -1, d)  # noqa: E731

    def attend_head(inputs: tuple[Array, Array, Array]) -> Array:
        q, k, v = inputs
        logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) * d**-0.5
        return jax.nn.softmax(logits).astype(v.dtype) @ v

    out = jax.lax.map(attend_head, (split(query), split(key), split(value)))  # [b * heads, n, d]
    return out.reshape(b, heads, n, d).transpose(0, 2, 1, 3)


def gelu(x: Array) -> Array:
    """The exact gelu; by erf, which costs a third of jax.nn.gelu's erfc on CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: Array) -> Array:
    """An early stand-in for the gelu, with which OpenAI's CLIP was trained."""
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


# Weights are worth nothing with another one than they were trained with.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": _gelu_tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The function of that name, of `ACTIVATIONS`.

    Raises:
        InputError: there is none.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def normalise_pixels(images: Float[Array, "b h w c"], pixels: str) -> Float[Array, "b h w c"]:
    """From [-1, 1] to the scale that a network's weights were trained with.

    Args:
        images: in [-1, 1].
        pixels: a key of `PIXELS`; 'plain' changes nothing.

    Raises:
        InputError: there is no such key, or the images are not RGB.
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
