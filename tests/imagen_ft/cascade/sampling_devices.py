"""What test_sampling_devices asks of eight devices, as one JSON line.

python -m tests.imagen_ft.cascade.sampling_devices
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from imagen_ft.diffusion.samplers import noise_of_keys
from imagen_ft.diffusion.stage import CONDITION_STEP
from launch.runtime.devices.mesh import make_mesh
from tests.support.small_cascade import NAMES, encoder, low_images, make_cascade

IMAGES, ALONE = 64, (0, 37, 63)
STEPS = (0, 1, 2, CONDITION_STEP)


def make_inputs(number):
    """Keys, text states and low-resolution images of all images."""
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(3), n))(jnp.arange(IMAGES))
    texts = encoder().embed(NAMES)[np.arange(IMAGES) % len(NAMES)]
    return {"keys": keys, "text": texts} | ({"low": low_images(IMAGES)} if number else {})


def compare(cascade, number):
    """One stage's noise and images: at batch 64 and 1 on one device, at batch 64 on eight."""
    stage, inputs, null = cascade.stages[number], make_inputs(number), encoder().null()
    mesh = make_mesh({"data": -1})
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    shape = (stage.denoiser.size, stage.denoiser.size, stage.denoiser.channels)
    draw_noise = jax.jit(
        lambda keys: jnp.stack([noise_of_keys(keys, shape)(step) for step in STEPS], axis=1)
    )

    def draw(inputs, null, variables):
        images = stage.sample(variables, null_text=null, **inputs)
        return images, np.asarray(draw_noise(inputs["keys"]))

    variables = cascade.variables[number]
    one, noise = draw(inputs, null, variables)
    on_eight, variables_on_eight = jax.device_put((inputs, (null, variables)), (split, whole))
    eight, noise_of_eight = draw(on_eight, *variables_on_eight)
    alone = [
        draw({name: x[n : n + 1] for name, x in inputs.items()}, null, variables) for n in ALONE
    ]
    pixels, noise_alone = (np.concatenate(part) for part in zip(*alone, strict=True))
    one, rows = np.asarray(one), list(ALONE)
    devices = [len(images.sharding.device_set) for images in (alone[0][0], eight)]
    return {
        "held": [devices[0], len(eight), len(eight.addressable_shards[0].data)],
        "noise": {
            "eight devices": bool((noise_of_eight == noise).all()),
            "batch 1": bool((noise_alone == noise[rows]).all()),
        },
        "pixels": {
            "eight devices": float(np.abs(np.asarray(eight) - one).max()),
            "batch 1": float(np.abs(pixels - one[rows]).max()),
        },
        "spread": float(np.std(one, axis=0).mean()),
    }


def main():
    cascade = make_cascade()
    result = {"devices": jax.device_count()}
    for number, name in enumerate(["base", "super-resolution"]):
        result[name] = compare(cascade, number)
    result["rounding"] = [
        dataclasses.replace(cascade, batch_size=size, mesh=make_mesh(axes)).rounding()
        for size, axes in ((30, {"data": 8}), (20, {"data": 2, "fsdp": 2, "tensor": 2}))
    ]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
