"""How much memory drawing takes, phase by phase, before anything is loaded."""

import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from classifiers.models.clip_text import ClipTextEncoder
from imagen_ft import weights
from imagen_ft.cascade.loading import text_shape, with_dtypes
from imagen_ft.cascade.opened import Opened, as_config
from imagen_ft.cascade.stage_weights import PUBLIC, open_run
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.stage import Stage
from imagen_ft.models import presets
from imagen_ft.models.autoencoder import PIECE, Autoencoder
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.text import loaded
from imagen_ft.text.sources import ClipSource, open_source
from imagen_ft.weights.loading import READERS
from launch.files import is_local
from launch.runtime.reports.tables import text_table

GB = 10**9
# The process itself, with a GPU's libraries loaded and XLA at work: an allowance.
RUNTIME = 3 * GB
# Presets of a Hub repository's text encoders, for CLIP by the width of its states.
_HUB_T5 = ("t5_xxl",)
_HUB_CLIP = {768: ("clip_l",), 1024: ("openclip_h",), 2048: ("clip_l", "openclip_g")}
# float32 copies of a block's widest activations alive at once: two for a norm, a convolution's
# input and output, the skip, and what is added.
_COPIES = 6


class Phase(NamedTuple):
    """Peak memory while one thing is done."""

    name: str
    device: int  # bytes on one device that does it all
    host: int  # bytes of the process


def memory_phases(config: Opened) -> list[Phase]:
    """The phases of drawing with a config of `imagen_ft.sample`, in order.

    Weights are counted exactly, on the host as read from files a few tensors at a time (an import
    or a run may need its size again). Activations are upper bounds: all that a level keeps for the
    way up, and a block's work in float32, for a whole batch and, with guidance, twice.
    """
    config = with_dtypes(as_config(config))
    base, stays = RUNTIME, 0
    phases: list[Phase] = []
    # 1. The text encoder; unless it is resident it is gone before the stages are loaded.
    if "weights" in config.text:
        models, shapes = _text_encoders(config)
        dtype = jnp.dtype(config.text.get("dtype", "bfloat16"))
        params, name = _bytes(shapes, dtype), "CLIP" if _is_clip(models) else "T5"
        length = config.text.get("max_length", 77)
        work = max(_text_activations(model, length) for model in models)
        phases += [
            Phase(f"{name}: load", params, base + _reading(shapes, dtype)),
            Phase(f"{name}: embed the prompts", params + work, base),
        ]
        stays = params if config.text.get("resident", False) else 0
    # 2. Loading the stages: they add up.
    stages, total = make_stages(config, base=False), stays
    shape = text_shape(config)
    for name, stage in stages.items():
        params_of_stage = _parameters(stage, shape)
        size = _bytes(params_of_stage, jnp.dtype(jnp.float32))
        total += size
        reading = _reading(params_of_stage, jnp.dtype(jnp.float32))
        from_files = _is_public(config.stages[name].run)
        phases.append(Phase(f"{name}: load", total, base + (reading if from_files else size)))
    # 3. Drawing, stage by stage, with all weights on the device.
    for name, stage in stages.items():
        size = stage.batch_size or config.batch_size
        work = min(size, config.batch_size) * _activations(stage, shape[0])
        # XLA casts the float32 weights to the dtype of the computation: a second, smaller copy.
        halves = _bytes(_networks(stage, shape), stage.denoiser.model.dtype)
        if jnp.dtype(stage.denoiser.model.dtype) == jnp.float32:
            halves = 0
        # float32 [image_size, image_size, 3]
        drawn = 4 * math.prod((stage.denoiser.image_size,) * 2) * 3
        images = config.batch_size * drawn
        phases.append(Phase(f"{name}: draw", total + halves + work, base + images))
        # 4. Decoding: all latents wait as images, but one is decoded at a time.
        if stage.denoiser.autoencoder is not None:
            side = stage.denoiser.image_size
            work = min(size, config.batch_size) * drawn
            work += _decoding(stage.denoiser.autoencoder, side)
            phases.append(Phase(f"{name}: decode", total + work, base + images))
    return phases


def _parameters(stage: Stage, text_shape: tuple[int, int]) -> list[Any]:
    """Parameter shapes of a stage: its networks and its auto-encoder."""
    shapes = _networks(stage, text_shape)
    if stage.denoiser.autoencoder is not None:
        shapes.append(stage.denoiser.autoencoder_shapes()["params"])
    return shapes


def _networks(stage: Stage, text_shape: tuple[int, int]) -> list[Any]:
    """Parameter shapes of a stage's network and its guide."""
    networks = [stage.denoiser, *([stage.guide] if stage.guide else [])]
    return [network.shapes(text_shape)["params"] for network in networks]


def memory_table(config: Opened) -> str:
    """`memory_phases` as text, in GB, with the peak below."""
    phases = memory_phases(config)
    phases.append(Phase("peak", max(p.device for p in phases), max(p.host for p in phases)))
    rows = [[p.name, f"{p.device / GB:.2f}", f"{p.host / GB:.2f}"] for p in phases]
    return text_table(["peak memory, in GB", "device", "host"], rows, rule=True)


def _is_public(path: str) -> bool:
    return path.startswith(PUBLIC) or (
        is_local(path) and os.path.exists(path) and open_run(path) is None
    )


def _text_encoders(
    config: ml_collections.ConfigDict,
) -> tuple[list[T5Encoder | ClipTextEncoder], list[Any]]:
    """Text encoders and their parameter shapes; nothing of a repository is fetched."""
    text, variant = config.text, config.text.get("variant")
    if os.path.exists(text.weights):
        source = open_source(text.weights, variant, "float32", text.get("max_length", 77))
        parts = source.parts if isinstance(source, ClipSource) else ("text_encoder",)
        opened = [weights.open_model(part, text.weights, variant) for part in parts]
        return [model for model, _ in opened], [shapes for _, shapes in opened]
    latent = any(entry.stage.get("autoencoder") for entry in config.stages.values())
    names = _HUB_CLIP.get(text_shape(config)[1], ("clip_l",)) if latent else _HUB_T5
    models: list[Any] = [presets.make(name) for name in names]
    return models, [presets.parameter_shapes(name) for name in names]


def _is_clip(models: list[T5Encoder | ClipTextEncoder]) -> bool:
    return isinstance(models[0], ClipTextEncoder)


def _bytes(shapes: Any, dtype: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) * jnp.dtype(dtype).itemsize


def _reading(shapes: Any, dtype: jnp.dtype) -> int:
    """Bytes of the tensors read at a time: mapped in float32, checked, and cast."""
    largest = sorted((leaf.size for leaf in jax.tree.leaves(shapes)), reverse=True)[:READERS]
    # float32, one byte for the check, and the result.
    return sum(largest) * (4 + 1 + dtype.itemsize)


def _text_activations(model: T5Encoder | ClipTextEncoder, length: int) -> int:
    """Bytes for a batch: a block's hidden values and logits, and its kernels in float32."""
    if isinstance(model, ClipTextEncoder):
        width, hidden, inner = model.width, model.mlp_width, model.width
    else:
        width, hidden, inner = model.d_model, model.d_ff, model.num_heads * model.d_kv
    values = 4 * hidden + 8 * width + 3 * model.num_heads * length
    kernels = width * (hidden + inner)
    return 4 * (loaded.BATCH_SIZE * length * values + 2 * kernels)


def _decoding(model: Autoencoder, side: int) -> int:
    """Bytes to decode one image: a block of the widest level, or the attention."""
    widths = model.block_out_channels
    # On the way up a level starts with what the one below hands on, as wide as that.
    blocks = [
        4 * _COPIES * (side >> level) ** 2 * widths[min(level + 1, len(widths) - 1)]
        for level in range(len(widths))
    ]
    # The attention works on pieces of `PIECE` queries at a time.
    pixels = (side // model.factor) ** 2
    return max(*blocks, 3 * 4 * min(PIECE, pixels) * pixels)


def _activations(stage: Stage, tokens: int) -> int:
    """Bytes for one image, see `memory_phases`."""
    model: Any = stage.denoiser.model
    size, half = stage.denoiser.size, jnp.dtype(model.dtype).itemsize
    widths, layers = model.block_out_channels, model.layers_per_block
    attention = model.self_attention
    kept = work = 0
    for level, width in enumerate(widths):
        pixels = (size >> level) ** 2
        count = layers if isinstance(layers, int) else layers[level]
        kept += pixels * width * (count + 1) * half
        # On the way up a block's input and the skip are joined along the channels.
        wide = width + widths[min(level + 1, len(widths) - 1)]
        block = 4 * _COPIES * pixels * wide
        if level < len(attention) and attention[level]:
            # [heads, pixels, pixels + tokens]: logits and softmax in float32, weights in the dtype;
            # then q, k, v and the output.
            logits = model.heads(level) * pixels * (pixels + tokens)
            block = max(block, logits * (4 + 4 + half) + 4 * 4 * pixels * width)
        work = max(work, block)
    # Guidance doubles the batch.
    times = 1 if stage.guidance_weight == 1.0 else 2
    return times * (kept + work)
