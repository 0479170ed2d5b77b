"""How much memory drawing takes, phase by phase, before anything is loaded."""

import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from imagen_ft import weights
from imagen_ft.cascade.loading import text_shape, with_dtypes
from imagen_ft.cascade.opened import Opened, as_config
from imagen_ft.cascade.stage_weights import PUBLIC, open_run
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.stage import Stage
from imagen_ft.models import presets
from imagen_ft.models.efficient_unet import EfficientUNet
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from imagen_ft.text import t5_encoder
from imagen_ft.weights.loading import READERS
from launch.files import is_local
from launch.runtime.reports.tables import text_table

GB = 10**9
# Of the process, with a GPU's libraries loaded and XLA at work: an allowance.
RUNTIME = 3 * GB
# What a T5 of the Hub is.
_HUB_T5 = "t5_xxl"
# Copies in float32 of the widest activations that a block is at work with: two of a norm, the
# input and the output of a convolution, the skip, and what is added.
_COPIES = 6


class Phase(NamedTuple):
    """What is in memory at the most while one thing is done.

    Attributes:
        name: of what is done.
        device: bytes on one device that does it all.
        host: bytes of the process.
    """

    name: str
    device: int
    host: int


def memory_phases(config: Opened) -> list[Phase]:
    """The phases of drawing with a config of `imagen_ft.sample`, in their order.

    Weights are counted exactly, on the host as read from files a few tensors at a time (an import
    or a run may need as much again as it has). Activations are bounds: all that a level keeps for
    its way up, and a block's work in float32, for a whole batch and, where there is guidance,
    twice. The host's part begins with an allowance for Python, JAX, CUDA and compiling.

    Args:
        config: see `Cascade.load`.

    Raises:
        InputError: the config is wrong.
    """
    config = with_dtypes(as_config(config))
    base, stays = RUNTIME, 0
    phases: list[Phase] = []
    if "weights" in config.text:
        model, shapes = _t5(config.text)
        dtype = jnp.dtype(config.text.get("dtype", "bfloat16"))
        params = _bytes(shapes, dtype)
        work = _t5_activations(model, config.text.get("max_length", 77))
        phases += [
            Phase("T5: load", params, base + _reading(shapes, dtype)),
            Phase("T5: embed the prompts", params + work, base),
        ]
        stays = params if config.text.get("resident", False) else 0
    stages, total = make_stages(config, base=False), stays
    shape = text_shape(config)
    for name, stage in stages.items():
        params_of_stage = _parameters(stage, shape)
        size = _bytes(params_of_stage, jnp.dtype(jnp.float32))
        total += size
        reading = _reading(params_of_stage, jnp.dtype(jnp.float32))
        from_files = _is_public(config.stages[name].run)
        phases.append(Phase(f"{name}: load", total, base + (reading if from_files else size)))
    for name, stage in stages.items():
        size = stage.batch_size or config.batch_size
        work = min(size, config.batch_size) * _activations(stage, shape[0])
        halves = _bytes(_parameters(stage, shape), stage.denoiser.model.dtype)
        if jnp.dtype(stage.denoiser.model.dtype) == jnp.float32:
            halves = 0
        images = config.batch_size * 4 * math.prod((stage.denoiser.size,) * 2) * 3
        phases.append(Phase(f"{name}: draw", total + halves + work, base + images))
    return phases


def _parameters(stage: Stage, text_shape: tuple[int, int]) -> list[Any]:
    """Shapes of the parameters of a stage's network, and of its guide's."""
    networks = [stage.denoiser, *([stage.guide] if stage.guide else [])]
    return [network.shapes(text_shape)["params"] for network in networks]


def memory_table(config: Opened) -> str:
    """`memory_phases` as text, with the peak below."""
    phases = memory_phases(config)
    phases.append(Phase("peak", max(p.device for p in phases), max(p.host for p in phases)))
    rows = [[p.name, f"{p.device / GB:.2f}", f"{p.host / GB:.2f}"] for p in phases]
    return text_table(["memory, in GB at the most", "device", "host"], rows, rule=True)


def _is_public(path: str) -> bool:
    return path.startswith(PUBLIC) or (
        is_local(path) and os.path.exists(path) and open_run(path) is None
    )


def _t5(text: ml_collections.ConfigDict) -> tuple[T5Encoder, Any]:
    """T5 and the shapes of its parameters; of a repository nothing is fetched."""
    if os.path.exists(text.weights):
        return weights.open_t5(text.weights, text.get("variant"))
    model = presets.make(_HUB_T5)
    assert isinstance(model, T5Encoder)
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model, jax.eval_shape(model.init, jax.random.key(0), tokens, tokens > 0)["params"]


def _bytes(shapes: Any, dtype: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) * jnp.dtype(dtype).itemsize


def _reading(shapes: Any, dtype: jnp.dtype) -> int:
    """What the tensors take that are read at a time: mapped in float32, checked, and cast."""
    largest = sorted((leaf.size for leaf in jax.tree.leaves(shapes)), reverse=True)[:READERS]
    return sum(largest) * (4 + 1 + dtype.itemsize)


def _t5_activations(model: T5Encoder, length: int) -> int:
    """Of a batch: a block's hidden values and logits, and its kernels that are used in float32."""
    widths = 4 * model.d_ff + 8 * model.d_model
    logits = 3 * model.num_heads * length
    kernels = model.d_model * (model.d_ff + model.num_heads * model.d_kv)
    return 4 * (t5_encoder.BATCH_SIZE * length * (widths + logits) + 2 * kernels)


def _heads(model: UNet | EfficientUNet, width: int) -> int:
    """The most heads of an attention of this width."""
    if isinstance(model, EfficientUNet):
        return model.num_heads
    head_dim = model.attention_head_dim
    return max(1, width // (head_dim if isinstance(head_dim, int) else min(head_dim)))


def _activations(stage: Stage, tokens: int) -> int:
    """Bytes for one image, see `memory_phases`."""
    model: Any = stage.denoiser.model
    size, half = stage.denoiser.size, jnp.dtype(model.dtype).itemsize
    widths, layers = model.block_out_channels, model.layers_per_block
    attention = model.attention if isinstance(model, UNet) else model.self_attention
    kept = work = 0
    for level, width in enumerate(widths):
        pixels = (size >> level) ** 2
        count = layers if isinstance(layers, int) else layers[level]
        kept += pixels * width * (count + 1) * half
        # On the way up a block begins with its input and the skip, one behind the other.
        wide = width + widths[min(level + 1, len(widths) - 1)]
        block = 4 * _COPIES * pixels * wide
        if level < len(attention) and attention[level]:
            logits = _heads(model, width) * pixels * (pixels + tokens)
            block = max(block, logits * (4 + 4 + half) + 4 * 4 * pixels * width)
        work = max(work, block)
    times = 1 if stage.guidance_weight == 1.0 else 2
    return times * (kept + work)
