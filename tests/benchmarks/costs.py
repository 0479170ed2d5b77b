"""What a million images cost on accelerators, from operations; nothing is allocated or compiled.

python -m tests.benchmarks.costs                 # at 40% of the peak, an assumption
python -m tests.benchmarks.costs --share=0.31    # as tests.benchmarks.sampling has measured it

Operations are XLA's count of the network as it is lowered, batch 1 and 77 tokens: a multiply-add is
two, an element-wise operation one, a transcendental one none, and what a convolution would multiply
of its padding is left out: at 8 px that is 16% of it. PyTorch counts the padding and matrices
alone. T5 is left out: a prompt is embedded once for all its images.
"""

import argparse
import dataclasses
import functools
import json
from typing import Any
from unittest import mock

import jax

from imagen_ft.diffusion.denoiser import Network
from imagen_ft.models import presets
from launch.runtime.layers import layers
from launch.runtime.reports.tables import text_table

TOKENS = 77
IMAGES = 1_000_000
# bfloat16 TFLOP/s of a chip, dense: the makers' data sheets (docs.cloud.google.com/tpu/docs/v4,
# v5p, v6e; the H200 SXM's is half of the printed 1,979, which count zeros of sparse matrices).
PEAKS = {"TPU v4": 275, "TPU v5p": 459, "TPU v6e": 918, "H200": 989}
# GFLOP of one forward pass, counted by PyTorch.
BY_PYTORCH = {
    "if_i_m": 229,
    "if_i_l": 612,
    "if_i_xl": 2879,
    "if_ii_m": 1758,
    "if_ii_l": 3090,
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a stage is sampled.

    Attributes:
        preset: of its network.
        size: of the images, in pixels.
        steps: of the sampler.
        guided: whether every step evaluates the network twice.
    """

    preset: str
    size: int
    steps: int
    guided: bool

    @property
    def evaluations(self) -> int:
        """Of the network, for one image."""
        return self.steps * (2 if self.guided else 1)

    def flops(self) -> float:
        """Of one image; the text's part is computed once for all steps."""
        text = network_flops(self.preset, self.size, "context")
        step = network_flops(self.preset, self.size, "denoise")
        return self.evaluations * step + (2 if self.guided else 1) * text


def _if(base: str, super_resolution: str) -> tuple[Sampling, ...]:
    """The defaults of IFPipeline and IFSuperResolutionPipeline, guidance 7 and 4."""
    return Sampling(base, 64, 100, True), Sampling(super_resolution, 256, 50, True)


CASCADES = {
    "IF-I-M, II-M": _if("if_i_m", "if_ii_m"),
    "IF-I-L, II-L": _if("if_i_l", "if_ii_l"),
    "IF-I-XL, II-L": _if("if_i_xl", "if_ii_l"),
    # Azizi et al. 2023, section 4: guidance 1.25, and none for super-resolution.
    "Imagen": (
        Sampling("imagen_base64", 64, 1000, True),
        Sampling("imagen_sr256", 256, 1000, False),
    ),
}


def program_flops(model: Network, method: str, *args: Any) -> float:
    """XLA's count for a method of a network.

    Args:
        model: the network.
        method: its name.
        *args: shapes of its arguments, the variables first.
    """
    program = jax.jit(lambda *args: model.apply(*args, method=method))
    # A loop over heads would be counted as one turn of it.
    with mock.patch.object(layers, "LARGE_ON_CPU", float("inf")):
        return program.lower(*args).cost_analysis()["flops"]


def model_flops(model: Network, variables: Any, size: int, text_width: int, method: str) -> float:
    """Operations for one image.

    Args:
        model: a U-Net.
        variables: their shapes.
        size: of the image, in pixels.
        text_width: of the text states.
        method: 'context' (once an image) or 'denoise' (every step).
    """
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")  # noqa: E731
    level = [shape(1)] if model.noise_level else []
    text = [shape(1, TOKENS, text_width), *level]
    x = [shape(1, size, size, 6 if level else 3), shape(1)]
    if method == "context":
        return program_flops(model, method, variables, *text)
    context = jax.eval_shape(lambda *args: model.apply(*args, method="context"), variables, *text)
    return program_flops(model, method, variables, *x, context)


@functools.cache
def network_flops(preset: str, size: int, method: str) -> float:
    """As `model_flops`, of a preset."""
    variables = {"params": presets.parameter_shapes(preset)}
    text_width = presets.PRESETS[preset].text_width
    return model_flops(presets.make(preset), variables, size, text_width, method)


def print_networks() -> None:
    """One line a network: operations of a forward pass, of the text and of a step."""
    rows = []
    stages = {stage.preset: stage for stages in CASCADES.values() for stage in stages}
    for preset, stage in stages.items():
        parts = (network_flops(preset, stage.size, method) for method in ("context", "denoise"))
        text, step = (part / 1e9 for part in parts)
        known = f"{BY_PYTORCH[preset]:,}" if preset in BY_PYTORCH else ""
        rows.append([preset, f"{text + step:,.0f}", known, f"{text:,.1f}", f"{step:,.0f}"])
    print("\n" + text_table(["GFLOP, one image", "forward", "PyTorch", "text", "step"], rows))


def chip_hours(flops: float, share: float) -> dict[str, float]:
    """Of a million images, by chip.

    Args:
        flops: of one image.
        share: of the chip's peak that is reached.
    """
    return {chip: IMAGES * flops / (1e12 * peak * share) / 3600 for chip, peak in PEAKS.items()}


def print_costs(share: float) -> None:
    """The table of a million images, at 64 px and after super-resolution."""
    print(f"\nchip-hours of a million images at {share:.0%} of the peak")
    lines, rows = [], []
    for name, stages in CASCADES.items():
        flops, evaluations = 0.0, []
        for stage in stages:
            flops += stage.flops()
            evaluations.append(f"{stage.steps}{' x 2' if stage.guided else ''}")
            hours = chip_hours(flops, share)
            case = f"{name.split(',')[0] if stage is stages[0] else name}, {stage.size} px"
            numbers = [f"{flops / 1e12:,.1f}", *(f"{value:,.0f}" for value in hours.values())]
            rows.append([case, evaluations[-1], *numbers])
            lines.append(dict(case=case, unit="chip-hours", share=share, images=IMAGES, **hours))
    print(text_table(["", "steps", "TFLOP/image", *PEAKS], rows))
    print("(each 256 px row is the whole cascade; its steps are those of the second stage)\n")
    print(*map(json.dumps, lines), sep="\n")


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share is more than 0 and at most 1")
    return float(text)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=_share, default=0.4, help="of the peak, 0 to 1")
    args = parser.parse_args()
    print_networks()
    print_costs(args.share)


if __name__ == "__main__":
    main()
