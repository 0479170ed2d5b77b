"""Image towers tuned with the class weights, in part or whole (He et al. 2023, table 3)."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from classifiers.extractors.extractor import Extractor
from classifiers.models.clip import unit
from classifiers.tuning.head import Loss, Part, in_phases
from input_pipeline.batches.loader import eval_batches
from input_pipeline.source import Source, Subset
from launch.errors import InputError
from launch.runtime.devices.mesh import replicate
from launch.runtime.training.optimizers import make_optimizer
from launch.runtime.types import Array, Batch

HEAD, WHOLE = "head", "whole"
# Parameters that images pass before the first block.
_BEFORE_BLOCKS = ("patch_embed", "positions", "class_token", "pre_norm", "stem_")


@dataclasses.dataclass(frozen=True)
class ImagePart(Part):
    """Images of one domain themselves; `features` are the teacher's, those before tuning."""

    images: Source  # as many as features


@dataclasses.dataclass(frozen=True)
class Tower:
    """An image tower that learns."""

    extractor: Extractor  # before tuning
    trained: frozenset[str]  # paths of parameters that learn; batch statistics never do
    rate: float  # factor of the class weights' learning rate
    mesh: Mesh  # its devices share batches that they divide


def check(tuned: Any, rate: float) -> None:
    """Raises InputError for fields that tuning the tower cannot take."""
    if tuned not in (HEAD, WHOLE) and not (type(tuned) is int and tuned > 0):
        raise InputError(
            "config.tuned must be 'head', 'whole', or the number of the tower's last blocks to "
            f"train, got {tuned!r}"
        )
    if not 0 < rate < float("inf"):
        raise InputError(f"config.tower_rate must be finite and above 0, got {rate}")


def trained_parameters(params: Mapping[str, Any], tuned: str | int) -> frozenset[str]:
    """Paths of the image tower's parameters that learn.

    `tuned` is 'head' for none, 'whole' for all, or a number: the last blocks and what follows them.
    Raises InputError if the tower has fewer blocks.
    """
    tower = {name: params[name] for name in ("image", "image_projection") if name in params}
    paths = flax.traverse_util.flatten_dict(tower, sep="/")
    if tuned == HEAD:
        return frozenset()
    if tuned == WHOLE:
        return frozenset(paths)
    # Ordered by stage and number, as the ResNets of CLIP have stages.
    blocks = sorted({of for path in paths if (of := _block(path)) is not None})
    if int(tuned) > len(blocks):
        raise InputError(
            f"config.tuned must be at most the {len(blocks)} blocks of the tower, got {tuned}; "
            f"choose fewer, or {WHOLE!r}"
        )
    last = set(blocks[len(blocks) - int(tuned) :])
    # All that is in no block is before the first or after the last: norms, pooling, projection.
    before = tuple(f"image/{name}" for name in _BEFORE_BLOCKS)
    after = (path for path in paths if _block(path) is None and not path.startswith(before))
    return frozenset(after) | {path for path in paths if _block(path) in last}


def _block(path: str) -> tuple[int, int] | None:
    """Stage and number of a parameter's block; ViTs have one stage. None if it is in no block."""
    found = re.match(r"image/(?:stage_(\d+)_)?block_(\d+)/", path)
    return (int(found[1] or 0), int(found[2])) if found else None


def tune(
    start: Float[np.ndarray, "classes d"],
    parts: Sequence[ImagePart],
    strategy: str,
    optimizer: ml_collections.ConfigDict,
    epochs: int,
    seed: int,
    tower: Tower,
) -> tuple[Float[np.ndarray, "classes d"], Extractor]:
    """Tuned class weights and the tower that belongs to them; arguments as of `head.tune`."""
    extractor, mesh = tower.extractor, tower.mesh
    # Flat paths, so that what learns and what stays are two dicts of the same arrays.
    flat = flax.traverse_util.flatten_dict(extractor.variables, sep="/")
    whole = {path: replicate(mesh, np.asarray(leaf)) for path, leaf in flat.items()}
    teacher = replicate(mesh, start)
    learning = {f"params/{path}": whole[f"params/{path}"] for path in tower.trained}
    learnt: Any = {"kernel": teacher, "tower": learning}
    # Both learn at once: {"kernel": class weights, "tower": the trained parameters}.
    with jax.set_mesh(mesh):
        for phase, orders in in_phases(parts, strategy, epochs, seed):
            learnt = _phase(phase, orders, optimizer, learnt, whole, teacher, tower)
    variables = flax.traverse_util.unflatten_dict(whole | learnt["tower"], sep="/")
    return np.asarray(learnt["kernel"]), dataclasses.replace(extractor, variables=variables)


def _phase(
    parts: Sequence[ImagePart],
    orders: Sequence[Int[np.ndarray, "steps _"]],
    optimizer: ml_collections.ConfigDict,
    learnt: Any,
    whole: Mapping[str, Array],
    teacher: Array,
    tower: Tower,
) -> Any:
    losses = tuple(part.loss for part in parts)
    frozen = ml_collections.FrozenConfigDict(optimizer)  # hashable: a key of the cache
    tx, step = _program(tower.extractor.apply, losses, frozen, len(orders[0]), tower.rate)
    state = learnt, tx.init(learnt)
    readers = [_batches(*each, tower) for each in zip(parts, orders, strict=True)]
    for batches in zip(*readers, strict=True):
        state = step(state, whole, teacher, batches)
    return state[0]


@functools.lru_cache(maxsize=8)
def _program(
    apply: Any,
    losses: Sequence[Loss],
    optimizer: ml_collections.FrozenConfigDict,
    total_steps: int,
    rate: float,
) -> tuple[optax.GradientTransformation, Any]:
    """The optimiser and the jitted step; cached, so that all seeds share one compilation."""
    tx = make_optimizer(ml_collections.ConfigDict(optimizer), total_steps)

    def loss_of(learnt: Any, whole: Any, teacher: Array, batches: Sequence[Batch]) -> Array:
        variables = flax.traverse_util.unflatten_dict({**whole, **learnt["tower"]}, sep="/")
        total = jnp.zeros(())
        for loss, batch in zip(losses, batches, strict=True):
            # In evaluation mode: batch norms keep their statistics.
            seen = unit(apply(variables, batch["image"])["features"])
            total += loss(learnt["kernel"], teacher, seen, batch["label"], batch["before"])
        return total

    @jax.jit
    def step(state: Any, whole: Any, teacher: Array, batches: Sequence[Batch]) -> Any:
        learnt, opt_state = state
        gradient = jax.grad(loss_of)(learnt, whole, teacher, batches)
        updates, opt_state = tx.update(gradient, opt_state, learnt)
        # Scaled after the optimiser: Adam's updates do not depend on the size of gradients.
        of_tower = jax.tree.map(lambda x: rate * x, updates["tower"])
        return optax.apply_updates(learnt, {**updates, "tower": of_tower}), opt_state

    return tx, step


def _batches(
    part: ImagePart, order: Int[np.ndarray, "steps b"], tower: Tower
) -> Iterator[dict[str, Array]]:
    """Images, labels and features before tuning of each step; images are read ahead."""
    images = Subset(part.images, order.ravel())
    read = eval_batches(images, order.shape[1], tower.extractor.transform)
    for batch, rows in zip(read, order, strict=True):
        arrays = {
            "image": batch["image"],
            "label": part.labels[rows],
            "before": part.features[rows],
        }
        yield {name: replicate(tower.mesh, array) for name, array in arrays.items()}
