"""One pass over all images of a source, on all devices of a job."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.batches import loader
from input_pipeline.source import Source, Transform
from launch.runtime.devices import mesh as meshes
from launch.runtime.types import Array

# Images uint8 [b, h, w, c], labels [b] and positions in the source [b] -> results, each [b, ...].
Step = Callable[[Array, Array, Array], Mapping[str, Array]]


def over_batches(
    step: Step,
    source: Source,
    batch_size: int,
    transform: Transform | None = None,
    mesh: Mesh | None = None,
    tell: Callable[[int], Any] = lambda images: None,
) -> dict[str, np.ndarray]:
    """A step's results for every image, in order: [n, ...] each; see `each_batch`."""
    batches = list(each_batch(step, source, batch_size, transform, mesh, tell))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def each_batch(
    step: Step,
    source: Source,
    batch_size: int,
    transform: Transform | None = None,
    mesh: Mesh | None = None,
    tell: Callable[[int], Any] = lambda images: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields a step's results for each batch, in order.

    Args:
        step: what to compute; it gets padding too, which is cut off its results.
        source: the images.
        batch_size: images at a time; with a mesh, rounded up to a multiple of its devices.
        transform: applied to each image first.
        mesh: batches are split over its axes data and fsdp, and all processes of a job share them;
            None leaves them where JAX puts them.
        tell: called with the number of images done, after each batch.
    """
    # 1. The batch, and the rows of it that this process loads for its devices.
    if mesh is not None:
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        batch_size = -(-batch_size // share) * share
    rows = None if mesh is None else meshes.local_rows(mesh, batch_size)

    # 2. Compute.
    def results() -> Iterator[tuple[Mapping[str, Array], np.ndarray]]:
        for k, batch in enumerate(loader.eval_batches(source, batch_size, transform, rows)):
            positions = np.arange(k * batch_size, (k + 1) * batch_size, dtype=np.int32)
            inputs = {"image": batch["image"], "label": batch["label"]}
            inputs["position"] = positions if rows is None else positions[rows]
            if mesh is None:
                outputs = step(*inputs.values())
            else:
                with jax.set_mesh(mesh):
                    outputs = step(*meshes.put_batch(mesh, inputs).values())
            yield outputs, positions < len(source)

    # 3. Fetch one batch late, so that the device computes while results are copied.
    for outputs, mask in meshes.fetch_behind(results()):
        # `mask` cuts off the padding of the last batch.
        yield {name: np.asarray(value)[mask] for name, value in outputs.items()}
        tell(int(mask.sum()))
