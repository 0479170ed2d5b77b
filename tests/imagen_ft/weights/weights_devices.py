"""What test_weights_sharded asks of eight devices, in the folder that it names."""

import json
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from imagen_ft import weights
from imagen_ft.weights.__main__ import main
from launch.runtime.checkpoints.safetensors_io import Tensor
from launch.runtime.devices import mesh
from tests.imagen_ft.weights.tiny_weights import write_pipeline


class Watched(np.ndarray):
    """Of a tensor: notes in `shares` the largest part that is taken of it."""

    def __getitem__(self, index):
        part = super().__getitem__(index).view(np.ndarray)
        self.shares[self.name] = max(self.shares.get(self.name, 0.0), part.size / self.size)
        return part


def watched_view(shares):
    view = Tensor.view

    def watched(self):
        array = view(self).view(Watched)
        array.name, array.shares = f"{self.file.parent.name} {self.start}", shares
        return array

    return mock.patch.object(Tensor, "view", watched)


def main_test(folder):
    pipeline = write_pipeline(folder / "pipeline")
    main(["weights", f"--from=deepfloyd:{pipeline}", f"--to={folder}/imported"])
    # By the rule for large arrays the tiny ones are split as well.
    mesh.MIN_SHARDED_SIZE = 64
    devices = mesh.make_mesh({"fsdp": 8})
    result = {"devices": jax.device_count()}
    for part, load in (("unet", weights.load_unet), ("text_encoder", weights.load_t5)):
        expected = load(pipeline)[1]
        shardings = mesh.state_shardings(devices, expected)
        for name in ("pipeline", "imported"):
            shares = {}
            with watched_view(shares):
                params = load(folder / name, mesh=devices)[1]
            equal = jax.tree.map(np.array_equal, params, expected)
            placed = jax.tree.map(
                lambda leaf, sharding: leaf.sharding == sharding, params, shardings
            )
            split = [not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings)]
            result[f"{part} {name}"] = {
                "equal": all(jax.tree.leaves(equal)),
                "placed": all(jax.tree.leaves(placed)),
                "split": sum(split),
                "read in eighths": sum(share == 1 / 8 for share in shares.values()),
            }
    return result


if __name__ == "__main__":
    print(json.dumps(main_test(Path(sys.argv[1]))))
