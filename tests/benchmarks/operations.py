"""Operations of the paper's networks, counted once and kept in `operations.json`.

python -m tests.benchmarks.operations    # counts all again, in some minutes, and writes the file

They are counted by `launch.runtime.devices.flops` as a TPU does them: matrix products and
convolutions, two per multiply-add, without a convolution's padding. Only shapes are made, no
weights. A pass is one image through a network, given 77 tokens of text; a training step is that of
its config, for one image: forward, backward, and what `remat` computes again. T5 and CLIP are left
out: a prompt is embedded once for all its images. For latent models, the final pass of the decoder
is counted too.
"""

import functools
import importlib
import json
from typing import Any

import jax

from imagen_ft.diffusion.denoiser import Network
from imagen_ft.models import presets
from imagen_ft.models.latent_unet import Added
from imagen_ft.training.training import Training
from launch.runtime.devices.flops import count_flops
from tests.benchmarks.harness import as_on_tpu
from tests.benchmarks.recipes import recipe, step_flops
from tests.configs.tables import RECIPES
from tests.support import ROOT

PATH = ROOT / "tests" / "benchmarks" / "operations.json"
TOKENS = 77
# Size of the images that each makes, in pixels.
SIZES = {
    "if_i_m": 64,
    "if_i_l": 64,
    "if_i_xl": 64,
    "if_ii_m": 256,
    "if_ii_l": 256,
    "imagen_base64": 64,
    "imagen_sr256": 256,
    "imagen_sr1024": 1024,
}
# The same for latent models; a side of their latents is an eighth of that.
LATENT_SIZES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
_PIXELS = 8  # pixels per latent, along a side
TRAINED = ("if_i_l", "if_ii_l", "imagen_base64", "imagen_sr256", "imagen_sr1024")


def model_flops(model: Network, variables: Any, size: int, text_width: int, method: str) -> float:
    """Operations for one image.

    Args:
        model: a U-Net.
        variables: their shapes.
        size: of the image, in pixels.
        text_width: of the text states.
        method: 'context' (once per image) or 'denoise' (every step).
    """

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, "float32")

    def run(*args: Any, method: str = method) -> Any:
        return model.apply(*args, method=method)

    level = [shape(1)] if model.noise_level else []
    text = [variables, shape(1, TOKENS, text_width), *level]
    with as_on_tpu():
        if method == "context":
            return count_flops(run, *text)
        context = jax.eval_shape(functools.partial(run, method="context"), *text)
        x = shape(1, size, size, 6 if level else 3)
        return count_flops(run, variables, x, shape(1), context)


def pass_flops(preset: str, method: str) -> float:
    """As `model_flops`, for a preset at its own image size."""
    variables = {"params": presets.parameter_shapes(preset)}
    text_width = presets.PRESETS[preset].text_width
    return model_flops(presets.make(preset), variables, SIZES[preset], text_width, method)


def latent_flops(preset: str, method: str) -> float:
    """As `latent_model_flops`, for a preset at its own image size."""
    size, row = LATENT_SIZES[preset] // _PIXELS, presets.PRESETS[preset]
    name = preset
    if method == "decode":
        name = "sdxl_vae" if preset == "sdxl" else "sd_vae"
    variables = {"params": presets.parameter_shapes(name)}
    widths = (row.text_width, row.pooled_width)
    return latent_model_flops(presets.make(name), variables, size, widths, method)


def latent_model_flops(
    model: Any, variables: Any, size: int, widths: tuple[int, int], method: str
) -> float:
    """Operations for one image in a latent U-Net, or in the decoder after it.

    Args:
        model: U-Net or auto-encoder.
        variables: their shapes.
        size: side of the latents.
        widths: of the text states and of the pooled text; 0 for none.
        method: 'context' (once per image), 'denoise' (every step) or 'decode'.
    """
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")  # noqa: E731
    latents = shape(1, size, size, 4)
    run = functools.partial(model.apply, method=method)
    text_width, pooled_width = widths
    added = Added(shape(1, pooled_width), shape(1, 6)) if pooled_width else None
    text = [variables, shape(1, TOKENS, text_width), added]
    with as_on_tpu():
        if method == "decode":
            return count_flops(run, variables, latents)
        if method == "context":
            return count_flops(run, *text)
        context = jax.eval_shape(functools.partial(model.apply, method="context"), *text)
        return count_flops(run, variables, latents, shape(1), context)


def stage_step_flops(name: str, batch: int = 2) -> float:
    """Operations per image of a training step of a config in configs/imagenet."""
    training = Training.of(importlib.import_module(f"configs.imagenet.{name}").get_config())
    shape, size = jax.ShapeDtypeStruct, training.denoiser.size
    images = shape((batch, size, size, training.denoiser.channels), "uint8")
    inputs = dict(image=images, label=shape((batch,), "int32"))
    texts = (
        shape((1000, *training.text_shape), "bfloat16"),
        shape(training.text_shape, "bfloat16"),
    )
    with as_on_tpu():
        return count_flops(training.update, training.abstract, inputs, *texts) / batch


def count() -> dict[str, dict[str, float]]:
    """Counts all: `context`, `denoise` and `decode` by preset, `step` by config."""
    steps = {name: stage_step_flops(name) for name in TRAINED}
    steps |= {name: step_flops(recipe(name)[0]) for name in RECIPES}
    passes = {
        method: {preset: pass_flops(preset, method) for preset in SIZES}
        for method in ("context", "denoise")
    }
    for method in ("context", "denoise", "decode"):
        own = {preset: latent_flops(preset, method) for preset in LATENT_SIZES}
        passes[method] = passes.get(method, {}) | own
    return dict(passes, step=steps)


@functools.cache
def counted() -> dict[str, dict[str, float]]:
    """The contents of the file, in the form of `count`."""
    return json.loads(PATH.read_text())


if __name__ == "__main__":
    PATH.write_text(json.dumps(count(), indent=1, sort_keys=True) + "\n")
