"""Losses of image-text pairs over the batch of all devices, computed in chunks.

The logits of a batch of 32,768 are 4 GiB in float32. At most `chunk` rows of them exist on a device
at a time, forwards and backwards; the loss and its gradient are those of the whole batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from classifiers.models.clip import Pairs, products
from launch.runtime.types import Array

_BATCH_AXES = ("data", "fsdp")
Loss = Callable[[Pairs], Float[Array, ""]]


def make_loss(sigmoid: bool, chunk: int) -> Loss:
    """The loss of a batch whose image n goes with its text n.

    `sigmoid` chooses SigLIP's (Zhai et al. 2023, section 3.2); otherwise it is CLIP's (Radford et
    al. 2021, figure 3), the mean of the cross-entropies of images and of texts. `chunk` is the
    number of rows of logits at a time on a device, 0 for all.
    """
    local = _sigmoid if sigmoid else _softmax

    def loss(pairs: Pairs) -> Float[Array, ""]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size <= 1:
            return local(*pairs, axes=(), chunk=chunk)
        # Each device has its rows of images and gathers all texts; the result is the same on each.
        rows = P(_BATCH_AXES)
        spread = jax.shard_map(
            functools.partial(local, axes=_BATCH_AXES, chunk=chunk),
            mesh=mesh,
            in_specs=(rows, rows, P(), P()),
            out_specs=P(),
            check_vma=False,
        )
        return spread(*pairs)

    return loss


def _softmax(
    images: Float[Array, "m d"],
    texts: Float[Array, "m d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    axes: tuple[str, ...],
    chunk: int,
) -> Float[Array, ""]:
    everyone = _gather(texts, axes)  # [n, d]
    count = len(everyone)

    def body(columns: tuple[Array, Array], rows: Array) -> tuple[tuple[Array, Array], Array]:
        logits = _logits(rows, everyone, scale, bias)
        # Online softmax (Milakov & Gimelshein 2018) over the columns: the texts' sums of
        # exponentials over the images so far, relative to a running maximum.
        highest, total = columns
        new = jnp.maximum(highest, jax.lax.stop_gradient(logits.max(axis=0)))
        total = total * jnp.exp(highest - new) + jnp.exp(logits - new[None]).sum(axis=0)
        # A row is complete within its chunk, so that its logsumexp needs no running sum.
        return (new, total), jax.nn.logsumexp(logits, axis=1)

    start = jnp.full(count, -jnp.inf), jnp.zeros(count)
    (highest, total), of_rows = _in_chunks(body, start, images, chunk)
    # The maximum cancels out of the result, so no gradient needs to go through it.
    top = _over(jax.lax.pmax, jax.lax.stop_gradient(highest), axes)
    of_columns = top + jnp.log(_over(jax.lax.psum, total * jnp.exp(highest - top), axes))
    # Cross-entropy = logsumexp - own logit, for every row and every column. The bias is the same
    # for all logits and cancels.
    own = _own(images, texts, scale, bias)
    of_devices = _over(jax.lax.psum, of_rows.sum() - 2 * own.sum(), axes)
    return (of_devices + of_columns.sum()) / (2 * count)


def _sigmoid(
    images: Float[Array, "m d"],
    texts: Float[Array, "m d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    axes: tuple[str, ...],
    chunk: int,
) -> Float[Array, ""]:
    everyone = _gather(texts, axes)

    def body(total: Array, rows: Array) -> tuple[Array, Array]:
        # -log sigmoid(-x) = softplus(x), of every text as if all were wrong.
        wrong = jax.nn.softplus(_logits(rows, everyone, scale, bias)).sum()
        return total + wrong, wrong

    total, _ = _in_chunks(body, jnp.zeros(()), images, chunk)
    # The own texts are right: -log sigmoid(x) = softplus(x) - x.
    total = total - _own(images, texts, scale, bias).sum()
    return _over(jax.lax.psum, total, axes) / len(everyone)


def _logits(images: Array, texts: Array, scale: Array, bias: Array) -> Float[Array, "m n"]:
    return products(images, texts) * scale + bias


def _own(images: Array, texts: Array, scale: Array, bias: Array) -> Float[Array, " m"]:
    return (images * texts).sum(axis=1) * scale + bias  # each image with its own text


def _in_chunks(body: Any, start: Any, rows: Float[Array, "m d"], chunk: int) -> tuple[Any, Array]:
    """Scans `body` over chunks of the rows; the backward pass computes each chunk again."""
    size = _divisor(len(rows), chunk)
    if size == len(rows):
        return body(start, rows)
    split = rows.reshape(-1, size, rows.shape[-1])  # [chunks, size, d]
    # Without the checkpoint the scan would keep the logits of all chunks for the backward pass.
    end, results = jax.lax.scan(jax.checkpoint(body), start, split)
    return end, results.reshape(-1)


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` up to `most`; 0 sets no bound."""
    most = min(most or count, count)
    return next(size for size in range(most, 0, -1) if count % size == 0)


def _gather(texts: Array, axes: tuple[str, ...]) -> Float[Array, "n d"]:
    """The texts of all devices, in the order of the batch."""
    return jax.lax.all_gather(texts, axes, tiled=True) if axes else texts


def _over(combine: Callable[..., Array], value: Array, axes: tuple[str, ...]) -> Array:
    return combine(value, axes) if axes else value
