"""Draws requests in batches, through the stages of a cascade, on the devices."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Key, UInt8

from imagen_ft.cascade.request import Request, RequestTexts
from imagen_ft.diffusion.stage import Stage
from launch.runtime.devices.hardware import architecture
from launch.runtime.devices.mesh import fetch, put_split
from launch.runtime.images import finite_images, to_float, to_uint8
from launch.runtime.types import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """How the stages of a cascade draw; see `Cascade` for the fields."""

    stages: tuple[Stage, ...]
    variables: tuple[dict[str, Any], ...]
    mesh: Mesh | None = None

    @property
    def ways(self) -> int:
        """Devices that a batch is split over."""
        # 'tensor' splits the network, not the batch.
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def sizes(self, batch_size: int) -> list[int]:
        """Images that each stage draws at a time within batches of `batch_size`."""
        sizes = [min(stage.batch_size or batch_size, batch_size) for stage in self.stages]
        return [_multiple(size, self.ways) for size in sizes]

    def rounding(self, batch_size: int) -> dict[str, Any]:
        """See `Cascade.rounding`; `batch_size` is the cascade's."""
        axes = {} if self.mesh is None else self.mesh.shape
        devices = jax.local_devices()[:1] if self.mesh is None else self.mesh.devices.ravel()
        precision = jax.default_matmul_precision.value
        return {
            "device": architecture(devices[0]),
            # How many devices there are does not matter, only how many images each has, and whether
            # there are several.
            "images_per_device": [size // self.ways for size in self.sizes(batch_size)],
            "several_devices": len(devices) > 1,
            **{axis: axes.get(axis, 1) for axis in ("fsdp", "tensor")},
            # Only where the user has set one: otherwise the dtype decides.
            **({} if precision is None else {"matmul_precision": precision}),
        }

    def batches(
        self, request: Request, texts: RequestTexts, batch_size: int
    ) -> Iterator[tuple[list[UInt8[Array, "b size size c"]], list[Bool[Array, " b"]]]]:
        """What `_run_stages` returns, batch by batch, for a checked request; none is waited for."""
        # 1. Each image's index in its set (its noise) and place in the order (its row).
        count = len(request)
        indices = np.arange(count) if request.indices is None else np.asarray(request.indices)
        optional = {"low": request.low, "start": request.start}
        given = {name: images for name, images in optional.items() if images is not None}
        positions = np.arange(count)
        if request.positions is not None:
            positions = np.asarray(request.positions)
        # 2. Batches, cut where the full set would cut them.
        sizes = self.sizes(batch_size)
        for batch in _runs(positions, _multiple(batch_size, self.ways)):
            inputs = {**texts.rows(batch), "indices": indices[batch]}
            begin = {name: to_float(jnp.asarray(images[batch])) for name, images in given.items()}
            yield self._run_stages(request, sizes, positions[batch], inputs, begin, texts.common)

    def path(
        self, request: Request, texts: RequestTexts
    ) -> tuple[UInt8[np.ndarray, "steps n size size c"], Bool[np.ndarray, " n"]]:
        """The base's predictions at each step, and which images are finite; all in one batch."""
        # Padded rows are drawn and dropped.
        count = len(request)
        padding = _multiple(count, self.ways) - count
        keys = image_keys(request.seed, 0, np.pad(np.arange(count), (0, padding)))
        rows: dict[str, Any] = texts.rows(slice(None))
        if request.start is not None:
            rows["start"] = to_float(jnp.asarray(request.start[:]))
        batch = {name: _filled(values, 0, padding) for name, values in rows.items()}
        options: dict[str, Any] = dict(skip_steps=request.skip_steps, **texts.common)
        with self._on_mesh(keys=keys, **batch) as inputs:
            steps = self.stages[0].path(self.variables[0], **options, **inputs)
            return fetch(to_uint8(steps))[:, :count], fetch(finite_images(steps[-1]))[:count]

    @contextlib.contextmanager
    def _on_mesh(self, **batch: Any) -> Iterator[dict[str, Any]]:
        """A block in which the mesh is in use, with a batch split over it."""
        if self.mesh is None:
            yield batch
        else:
            # jit reads the mesh from the context: shardings inside the networks name its axes.
            with jax.set_mesh(self.mesh):
                yield put_split(self.mesh, batch)

    def _run_stages(
        self,
        request: Request,
        sizes: Sequence[int],
        positions: Int[np.ndarray, " b"],
        inputs: dict[str, np.ndarray],
        begin: dict[str, Array],
        common: dict[str, np.ndarray],
    ) -> tuple[list[Array], list[Array]]:
        """The images of every stage, uint8 [b, size, size, c], and which of them are finite.

        `sizes` are the images each stage draws at a time, `positions` consecutive places in the
        set. `inputs` has `text` and `indices`, and `null_text` where each image has its own;
        `begin` has `low` and `start` of the first stage, in [-1, 1]; `common` has what all images
        share.
        """
        stages, finite = [], []
        for number in range(request.first_stage(self.stages), len(self.stages)):
            # `start` is the first stage's alone; `low` is what each later one enlarges.
            batch = inputs | begin
            images = self._run_stage(number, request, sizes[number], positions, batch, common)
            stages.append(to_uint8(images))
            finite.append(finite_images(images))
            # The next stage starts from these, as floats: they never went through uint8.
            begin = {"low": images}
        return stages, finite

    def _run_stage(
        self,
        number: int,
        request: Request,
        size: int,
        positions: Int[np.ndarray, " b"],
        inputs: dict[str, Any],
        common: dict[str, np.ndarray],
    ) -> Float[Array, "b size size c"]:
        """One stage; every batch is padded to one size, so that one compilation is enough.

        The image at position p is in row p % size: how a compiler rounds can depend on the row.
        """
        # Numbers are inputs of the program: sweeping them does not compile again.
        stage, numbers = self.stages[number].split()
        skip_steps = 0 if number else request.skip_steps
        options = dict(skip_steps=skip_steps, numbers=numbers, **common)
        drawn = []
        for part in _runs(positions, size):
            # Rows [first, last) of the batch; zeros around them are drawn and dropped.
            first = int(positions[part.start]) % size
            last = first + part.stop - part.start
            batch: dict[str, Any] = {
                name: _filled(values[part], first, size - last) for name, values in inputs.items()
            }
            batch["keys"] = image_keys(request.seed, number, batch.pop("indices"))
            with self._on_mesh(**batch) as placed:
                images = stage.sample(self.variables[number], **placed, **options)
            drawn.append(images[first:last])
        return jnp.concatenate(drawn)


def image_keys(seed: int, stage: int, indices: np.ndarray) -> Key[Array, " n"]:
    """One key per image: a function of the seed, the stage's number and the image's index alone."""
    # fold_in, not split: key n must not depend on how many there are.
    key = jax.random.fold_in(jax.random.key(seed), stage)
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.asarray(indices))


def _multiple(size: int, ways: int) -> int:
    """`size` rounded up to a multiple of `ways`."""
    return -(-size // ways) * ways


def _runs(positions: Int[np.ndarray, " n"], size: int) -> Iterator[slice]:
    """Slices of consecutive positions, none across a multiple of `size`."""
    # Cut where the next position does not follow, or starts a new batch of the full set.
    cuts = np.flatnonzero((np.diff(positions) != 1) | (positions[1:] % size == 0)) + 1
    return itertools.starmap(slice, itertools.pairwise([0, *cuts.tolist(), len(positions)]))


def _filled(values: Array, before: int, behind: int) -> Array:
    """The values with rows of zeros around them."""
    # On the device if the values are there already: no round trip.
    pad = jnp.pad if isinstance(values, jax.Array) else np.pad
    widths = ((before, behind),) + ((0, 0),) * (values.ndim - 1)
    return pad(values, widths) if before or behind else values
