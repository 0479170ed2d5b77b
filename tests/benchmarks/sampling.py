"""Sampling against diffusers' pipelines of DeepFloyd IF: same weights, steps, guidance, process.

python -m tests.benchmarks.sampling            # 51M parameters each: 64 px; 16 px to 64 px
python -m tests.benchmarks.sampling --quick    # within a minute
python -m tests.benchmarks.sampling --preset=if_i_m --dtype=bfloat16 --batch=4,16,64    # on a GPU
python -m tests.benchmarks.sampling --preset=if_ii_m --dtype=bfloat16 --batch=4,16,64

Before timing, the pipeline gets the noise of our images: the same images must come out. On a GPU
the peer's network is compiled by torch.compile; on a CPU both use --threads threads.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

from imagen_ft.diffusion.ddpm import DDPM
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.samplers import noise_of_keys
from imagen_ft.diffusion.schedule import SquaredCos
from imagen_ft.diffusion.stage import CONDITION_STEP, Stage
from imagen_ft.models import presets
from imagen_ft.models.unet import UNet
from tests.benchmarks.harness import (
    Result,
    arguments,
    check_same_work,
    compare,
    matrix_peak,
    report,
    synchronize,
)
from tests.benchmarks.operations import TOKENS, model_flops
from tests.parity.torch_weights import UNET_RENAMES, randomize, relative_error, variables
from tests.support import diffusers_unet as parity
from tests.support.diffusers_pipelines import IF, LEVEL, make_theirs, to_torch

GUIDANCE = {1: 7.0, 2: 4.0}  # the pipelines' default


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage to measure.

    Attributes:
        number: 1 for the base, 2 for super-resolution.
        fields: of the U-Net.
        size: of the images, in pixels.
        low_size: of the low-resolution images; 0 for the base.
        text_width: of the text states.
    """

    number: int
    fields: dict[str, Any]
    size: int
    low_size: int
    text_width: int


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The stage of --preset, or a small one of each kind."""
    if args.preset:
        preset = presets.PRESETS[args.preset]
        second = preset.fields.get("noise_level", False)
        sizes = (256, 64) if second else (64, 0)
        return [Case(2 if second else 1, preset.fields, *sizes, preset.text_width)]
    widths, size = ((64, 96, 128), 32) if args.quick else ((64, 128, 256, 384), 64)
    fields = dict(
        out_channels=6,
        block_out_channels=widths,
        layers_per_block=1 if args.quick else 2,
        attention=(False, *[True] * (len(widths) - 1)),
        cross_attention_dim=widths[-1],
        attention_head_dim=32,
        pooling_heads=8,
    )
    second = dict(
        fields,
        attention=(False, False, *[True] * (len(widths) - 2)),
        time_embedding_dim=widths[-1],
        noise_level=True,
        skip_time_act=True,
        out_scale=1.41422712,
    )
    return [Case(1, fields, size, 0, 512), Case(2, second, size, size // 4, 512)]


class Pair:
    """Our stage and diffusers' pipeline, with the same weights."""

    def __init__(self, case: Case, args: argparse.Namespace):
        self.case, self.steps = case, args.steps
        self.dtype, self.torch_dtype = jnp.dtype(args.dtype), getattr(torch, args.dtype)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = UNet(**case.fields, dtype=self.dtype)
        self.denoiser = Denoiser(
            model, SquaredCos(), case.size, case.low_size, 3, "bilinear_corners", True
        )
        self.shapes = self.denoiser.shapes((TOKENS, case.text_width))
        defaults = {name: getattr(model, name) for name in ("pooling_heads", "attention_head_dim")}
        torch.manual_seed(case.number)
        with mock.patch.object(parity, "TEXT_WIDTH", case.text_width):
            theirs = randomize(parity.diffusers_unet(defaults | case.fields), case.number)
        self.variables = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, self.dtype),
            variables(theirs, self.shapes, UNET_RENAMES),
        )
        if self.device == "cuda":
            theirs.compile(dynamic=False)
        self.pipeline = make_theirs(theirs.to(self.device, self.torch_dtype), case.number)

    @property
    def parameters(self) -> int:
        """Their number."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))

    def stage(self, guidance_weight: float) -> Stage:
        """Our stage, with the settings of `make_theirs`."""
        level = (LEVEL + 1) / 1000
        sampler = DDPM(self.steps, logvar_coeff=None, spacing="leading")
        return Stage(self.denoiser, sampler, guidance_weight, 95.0, level, threshold_maximum=1.5)

    def inputs(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Text states of the prompts and of the empty one, and low-resolution images."""
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
        text, null = (draw(n, TOKENS, self.case.text_width) for n in (batch, 1))
        low = self.case.low_size
        return text, null, np.tanh(draw(batch, low, low, 3)) if low else None

    def on_device(self, array: np.ndarray) -> torch.Tensor:
        """Moves arrays to the peer's device."""
        return torch.from_numpy(array).to(self.device, self.torch_dtype)

    @contextlib.contextmanager
    def same_noise(self, keys: jax.Array) -> Iterator[mock.Mock]:
        """Makes the pipeline draw our noise; yields the recorder of its network's inputs."""
        second = self.case.number == 2
        draw = noise_of_keys(keys, (self.case.size, self.case.size, 3))
        # diffusers draws noise for the start, the condition, then the steps.
        order = iter([0, *([CONDITION_STEP] if second else []), *range(self.steps, 0, -1)])
        take = lambda *_, **__: to_torch(np.asarray(draw(next(order)))).to(  # noqa: E731
            self.device, self.torch_dtype
        )
        module = f"{IF}.pipeline_if{'_superresolution' if second else ''}.randn_tensor"
        scheduler = self.pipeline.scheduler
        with (
            mock.patch(module, take),
            mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", take),
            mock.patch.object(
                scheduler, "scale_model_input", wraps=scheduler.scale_model_input
            ) as network_inputs,
        ):
            yield network_inputs


def measure(pair: Pair, batch: int, guidance_weight: float, args: argparse.Namespace) -> Result:
    """One stage at one guidance weight: checks that the images agree, then times them."""
    case, stage = pair.case, pair.stage(guidance_weight)
    text, null, low = pair.inputs(batch)
    keys = jax.random.split(jax.random.key(0), batch)
    states = [jnp.asarray(a, pair.dtype) for a in (text, null)]
    ours_low = None if low is None else jnp.asarray(low)
    embeds = [pair.on_device(a) for a in (text, np.repeat(null, batch, axis=0))]
    options = dict(height=case.size, width=case.size, num_inference_steps=pair.steps)
    if low is not None:
        image = pair.on_device(np.ascontiguousarray(np.moveaxis(low, -1, 1)))
        options |= dict(image=image, noise_level=LEVEL)

    def ours():
        return stage.sample(pair.variables, keys, *states, ours_low).block_until_ready()

    def peer():
        images = pair.pipeline(
            **options,
            guidance_scale=guidance_weight,
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            output_type="pt",
        ).images
        return synchronize(images)

    name = f"stage {case.number}, guidance {guidance_weight:g}, batch {batch}"
    with pair.same_noise(keys) as network_inputs:
        images = peer().permute(0, 2, 3, 1).float().cpu()
    error = relative_error(ours(), images)
    evaluations = pair.steps * (2 if guidance_weight != 1 else 1)
    evaluated = sum(len(call.args[0]) for call in network_inputs.call_args_list)
    check_same_work(name, args.dtype, error, batch * evaluations, evaluated)
    flops = [
        model_flops(stage.denoiser.model, pair.shapes, case.size, case.text_width, method)
        for method in ("context", "denoise")
    ]
    return compare(
        name,
        ours,
        peer,
        error=error,
        work=batch,
        unit="images/s",
        flops=batch * (evaluations / pair.steps * flops[0] + evaluations * flops[1]),
        evaluations=evaluations,
        repeats=3 if args.quick else 5,
    )


def main() -> None:
    """Runs the cases."""
    args = arguments(__doc__, preset="", batch="1")
    args.steps = args.steps or (2 if args.quick else 20 if args.preset else 4)
    torch.set_num_threads(args.threads)
    results = []
    for case in cases_of(args):
        pair = Pair(case, args)
        print(
            f"stage {case.number}: {pair.parameters / 1e6:.1f}M parameters, {case.size} px, "
            f"{args.steps} steps, {args.dtype}, {pair.device}",
            flush=True,
        )
        for batch in args.batch:
            for weight in (GUIDANCE[case.number], 1.0):
                results.append(measure(pair, batch, weight, args))
    report(results, matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
