"""Scores and attacks on eight devices against those on one: the largest differences as JSON."""

import json

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from classifiers.evaluation import attacks, label_maps, scores
from classifiers.models import presets
from input_pipeline.batches.passes import over_batches
from input_pipeline.source import ArraySource
from launch.runtime.devices.mesh import make_mesh

COUNT, CLASSES = 21, 6
PGD = dict(kind="pgd", epsilon=4, steps=2, step_size=2, seed=1)


def main():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    source = ArraySource(images, np.arange(COUNT) % CLASSES, tuple("abcdef"))
    model = presets.make("vit", CLASSES, width=16, depth=1, num_heads=2, patch_size=4)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    # Heads and some others begin as zeros.
    noise = lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(noise, variables)
    label_map = label_maps.identity(source.class_names)
    attack = attacks.make_attack(attacks.make("pgd", PGD), scores.make_judge(model, label_map))
    found = []
    for mesh in (None, make_mesh({"data": -1})):
        placed = jax.device_put(variables, NamedSharding(mesh, P())) if mesh else variables
        score = scores.make_score(model, source, label_map, 10, mesh=mesh)

        def step(images, labels, positions, placed=placed):
            reached = attack(placed, images, labels, positions)
            return {"attacked": reached.loss, "correct": reached.correct}

        attacked = over_batches(step, source, 10, mesh=mesh)
        found.append({**score(placed), **attacked})
    one, eight = found
    assert all(len(values) == COUNT for values in eight.values())
    differences = {
        name: float(np.abs(one[name].astype(float) - eight[name].astype(float)).max())
        for name in one
    }
    moved = float((one["attacked"] - one["loss"]).mean())
    print(json.dumps({"devices": jax.device_count(), "moved": moved, **differences}))


if __name__ == "__main__":
    main()
