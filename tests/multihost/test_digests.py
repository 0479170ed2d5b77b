"""Digests of values: the same for every layout, another one for every other value."""

import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from launch.runtime.checkpoints.content_digest import (
    _OF_BITS,
    _OF_INDEX,
    _OFFSETS,
    _of_array,
    _program,
    _sum_each,
    _sum_together,
    begin_content_digest,
    content_digest,
)
from tests.multihost.digest_devices import SPECS, SPLIT, arrays
from tests.multihost.processes import run_processes
from tests.support.checkpoint_states import make_state, newest, restore, save


def mixed(x):
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def expected(tree):
    """Element by element, in Python's integers."""
    result = hashlib.sha256()
    for name, array in sorted(tree.items()):
        width = min(array.dtype.itemsize, 4)
        data = array.tobytes()
        words = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
        result.update(f"['{name}'] {array.shape} {array.dtype}".encode())
        for factors in zip(_OF_BITS, _OF_INDEX, _OFFSETS, strict=True):
            a, b, c = factors
            hashes = [mixed((a * w + b * mixed(i) + c) % 2**32) for i, w in enumerate(words)]
            result.update((sum(hashes) % 2**32).to_bytes(4, "little"))
    return result.hexdigest()


@pytest.mark.parametrize("name", arrays())
def test_the_definition(name):
    array = arrays()[name]
    tree = {"a": array, "b": array.reshape(-1)[:5], "c": array[0, 0, 0], "d": array[:0]}
    assert content_digest(tree) == expected(tree)
    assert content_digest(jax.tree.map(jnp.asarray, tree)) == expected(tree)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_eight_bytes(dtype):
    tree = {"a": np.arange(12).reshape(3, 4).astype(dtype) / 7}
    assert content_digest(tree) == expected(tree)
    with jax.enable_x64(True):
        on_device = jax.tree.map(jnp.asarray, tree)
        assert on_device["a"].dtype == tree["a"].dtype
        assert content_digest(on_device) == expected(tree)


def test_large_arrays_of_the_host_are_hashed_in_blocks(monkeypatch):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32))
    whole = expected({"a": array})
    for size in (1, 7, 16, 55):
        monkeypatch.setattr(f"{content_digest.__module__}._BLOCK", size)
        assert content_digest({"a": array}) == whole


def changes():
    base = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    base[0, 0, 0] = 0.0

    def changed(index, value):
        other = base.copy()
        other[index] = value
        return {"a": other}

    yield "same", {"a": base}
    yield "sign of zero", changed((0, 0, 0), -0.0)
    swapped = base.copy()
    swapped[0, 0, 1], swapped[1, 2, 3] = base[1, 2, 3], base[0, 0, 1]
    yield "swapped", {"a": swapped}
    yield "turned", {"a": base[::-1]}
    yield "other shape", {"a": base.reshape(3, 2, 4)}
    yield "other type", {"a": base.view(np.int32)}
    yield "other name", {"b": base}
    yield "another NaN", changed((1, 0, 0), np.array(0x7FC00001, np.uint32).view(np.float32))
    yield "NaN", changed((1, 0, 0), np.array(0x7FC00000, np.uint32).view(np.float32))
    for bit in range(32):
        words = base.copy().view(np.uint32)
        words[1, 1, 1] ^= np.uint32(1) << np.uint32(bit)
        yield f"bit {bit}", {"a": words.view(np.float32)}


def test_every_change_changes_it():
    found = {name: content_digest(jax.tree.map(jnp.asarray, tree)) for name, tree in changes()}
    assert len(set(found.values())) == len(found) == 41


def test_a_first_save_finds_its_programs_compiled(tmp_path):
    state = make_state(1, keep_ema=True)
    assert restore(tmp_path) is None
    compiled = _program.cache_info().misses
    save(tmp_path, 1)
    assert _program.cache_info().misses == compiled
    assert newest(tmp_path).digest("slow") == content_digest(state.ema["slow"])


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_sums_for_each_platform(platform):
    """Of four lanes at once where that is faster to run, one by one where it is to compile."""
    shape = jax.ShapeDtypeStruct((8, 8), np.float32)
    lowered = jax.jit(_of_array).trace(shape).lower(lowering_platforms=(platform,))
    reductions = lowered.as_text().count("stablehlo.reduce(")
    assert reductions == (1 if platform == "cpu" else 4)
    lanes = [jnp.arange(12, dtype=jnp.uint32).reshape(3, 4) * 2**29 + k for k in range(4)]
    np.testing.assert_array_equal(_sum_together(*lanes), _sum_each(*lanes))


def test_values_may_be_donated_before_it_is_asked_for():
    x = jnp.arange(2**16, dtype=jnp.float32)
    before = content_digest({"x": np.arange(2**16, dtype=np.float32)})
    finish = begin_content_digest({"x": x})
    jax.jit(lambda x: -x, donate_argnums=0)(x).block_until_ready()
    assert x.is_deleted() and finish() == before


def test_what_has_no_digest():
    huge = np.broadcast_to(np.zeros((), np.uint8), (2**16, 2**16))
    with pytest.raises(ValueError, match=r"\(65536, 65536\): it is too large"):
        content_digest({"x": huge})
    with pytest.raises(ValueError, match="too large"):
        content_digest({"x": np.broadcast_to(np.zeros((), np.float64), (2**15, 2**16))})
    with pytest.raises(TypeError, match="complex64"):
        content_digest({"x": np.zeros(3, np.complex64)})
    with pytest.raises(TypeError, match="int4"):
        content_digest({"x": np.zeros(3, ml_dtypes.int4)})


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 2)])
def test_any_layout_on_any_devices(processes, devices):
    job = dict(processes=processes, devices=devices)
    for found in run_processes("tests.multihost.digest_devices", **job):
        assert found.pop("devices") == processes * devices
        assert found.pop("moved") <= 4 * processes * devices
        alone = {name: content_digest(arrays()[name]) for name in SPLIT}
        assert found == {name: [digest] * len(SPECS) for name, digest in alone.items()}
