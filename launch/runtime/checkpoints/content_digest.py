"""Checksums of array values, computed where the arrays are, independent of their layout.

One program is compiled for each shape and sharding, a few dozen for a network. On a TPU each takes
about a second (one program for all arrays takes longer than all of these), and training would stand
still for it at the first save: `prepare_content_digest` compiles ahead.
"""

import concurrent.futures
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Integer, PyTree, UInt32

from launch.runtime.types import Array

# Arbitrary constants, one for each of the four lanes. The multipliers are odd, hence invertible
# modulo 2^32: no bit is lost.
_OF_BITS = (0x9E3779B1, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
_OF_INDEX = (0xB5297A4D, 0x68E31DA5, 0x1B56C4E9, 0x7FEB352D)
_OFFSETS = (0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C)
# Threads, as XLA releases Python's lock while it compiles.
_COMPILING = concurrent.futures.ThreadPoolExecutor(8, thread_name_prefix="digest")
# 32-bit words of a host array that are hashed at once: 16 MiB.
_BLOCK = 2**22
# By bytes of an element; 8 bytes become two words.
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def content_digest(tree: PyTree) -> str:
    """SHA-256 over names, shapes, types and values of arrays, as 64 hexadecimal digits.

    Detects damage, not forgery. The same on any number of devices and processes, for any sharding,
    and for NumPy arrays. Arrays are real or boolean, of whole bytes (else TypeError) and fewer than
    2^32 words (else ValueError). If they span several processes, all of them must call this.
    """
    return begin_content_digest(tree)()


def prepare_content_digest(tree: PyTree) -> None:
    """Starts to compile, in threads, the programs for arrays of these shapes and shardings."""
    for leaf in jax.tree.leaves(tree):
        _program(leaf.shape, leaf.dtype, leaf.sharding)


def begin_content_digest(tree: PyTree) -> Callable[[], str]:
    """Starts `content_digest`; call the result to wait for it. Arrays may be donated before."""
    # 1. Compile all programs at once, in parallel.
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    for _, leaf in named:
        _check(leaf)
    prepare_content_digest([leaf for _, leaf in named if isinstance(leaf, jax.Array)])
    # 2. Start them; each gives four sums, which stay on the device.
    leaves = [
        (f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}", _lanes(leaf))
        for path, leaf in named
    ]

    # 3. SHA-256 over the names and sums, in the order of the tree.
    def finish() -> str:
        result = hashlib.sha256()
        for (name, _), lanes in zip(leaves, jax.device_get([x for _, x in leaves]), strict=True):
            result.update(name.encode() + lanes.astype("<u4").tobytes())
        return result.hexdigest()

    return finish


def _check(leaf: Any) -> None:
    if leaf.dtype.kind == "c" or leaf.dtype.name.endswith(("int2", "int4")):
        raise TypeError(f"no checksum for an array of the type {leaf.dtype}")
    if leaf.size * max(1, leaf.dtype.itemsize // 4) >= 2**32:
        raise ValueError(f"no checksum for an array of the shape {leaf.shape}: it is too large")


def _lanes(leaf: Any) -> UInt32[Array, "4"] | UInt32[np.ndarray, "4"]:
    if isinstance(leaf, jax.Array):
        return _program(leaf.shape, leaf.dtype, leaf.sharding).result()(leaf)
    return _of_host_array(np.asarray(leaf))


@functools.lru_cache(None)
def _program(
    shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding
) -> "concurrent.futures.Future[jax.stages.Compiled]":
    # The result is replicated, as every process reads all of it.
    whole = NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    lowered = jax.jit(_of_array, out_shardings=whole).lower(leaf)
    return _COMPILING.submit(lowered.compile)


def _of_array(x: Array) -> UInt32[Array, "4"]:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    # [..., 8 bytes] becomes [..., 2 words].
    words = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])
    # The flat (row-major) index of every word, modulo 2^32.
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]))
        index += stride * jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return _sums(_hashes(words, index))


def _of_host_array(x: np.ndarray) -> UInt32[np.ndarray, "4"]:
    # Block by block, so that no device needs memory for the whole array.
    words = np.ascontiguousarray(x).reshape(-1).view(_UNSIGNED[x.dtype.itemsize])
    total = np.zeros(4, np.uint32)
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK]
        # Sizes are padded to powers of two, so that few programs are compiled.
        padding = (1 << (block.size - 1).bit_length()) - block.size
        padded = np.pad(block, (0, padding)) if padding else block
        total += np.asarray(_of_block(padded, np.uint32(start), np.uint32(block.size)))
    return total


@jax.jit
def _of_block(
    words: Integer[Array, " n"], start: UInt32[Array, ""], count: UInt32[Array, ""]
) -> UInt32[Array, "4"]:
    index = jnp.arange(words.size, dtype=jnp.uint32)
    hashes = _hashes(words, start + index)
    # The padding counts as 0.
    return _sums([jnp.where(index < count, h, np.uint32(0)) for h in hashes])


def _hashes(words: Array, index: UInt32[Array, "*shape"]) -> list[UInt32[Array, "*shape"]]:
    # Each word is mixed with its index, so that swapped elements change the sum. Sums modulo 2^32
    # do not depend on the order of the terms, hence not on the sharding.
    words, index = words.astype(jnp.uint32), _mix(index)
    return [
        _mix(np.uint32(a) * words + np.uint32(b) * index + np.uint32(c))
        for a, b, c in zip(_OF_BITS, _OF_INDEX, _OFFSETS, strict=True)
    ]


def _sums(lanes: list[UInt32[Array, "*shape"]]) -> UInt32[Array, "4"]:
    return jax.lax.platform_dependent(*lanes, cpu=_sum_together, default=_sum_each)


def _sum_together(*lanes: UInt32[Array, "*shape"]) -> UInt32[Array, "4"]:
    # One reduction for all lanes: on a CPU four take 20 times as long.
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))  # noqa: E731
    zeros = (np.uint32(0),) * len(lanes)
    return jnp.stack(jax.lax.reduce(lanes, zeros, add, tuple(range(lanes[0].ndim))))


def _sum_each(*lanes: UInt32[Array, "*shape"]) -> UInt32[Array, "4"]:
    # One reduction per lane: on a TPU a common one takes four times as long to compile.
    return jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in lanes])


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    # The finalizer of MurmurHash3 (Appleby 2011), a permutation of the 32-bit numbers.
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
