"""The U-Net of DeepFloyd IF against diffusers' in PyTorch: same weights, same inputs, one process.

python -m tests.benchmarks.unet                      # 62M parameters at 64 px, as IF's stage I
python -m tests.benchmarks.unet --quick              # 28M at 32 px, within a minute
python -m tests.benchmarks.unet --preset=if_i_l --dtype=bfloat16 --batch=1,16,64    # on a GPU

On a GPU the peer is compiled by torch.compile; on a CPU both use --threads threads.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

from imagen_ft.models import presets
from imagen_ft.models.unet import UNet
from tests.benchmarks.harness import Result, arguments, compare, matrix_peak, report, synchronize
from tests.parity.torch_weights import UNET_RENAMES, randomize, relative_error, variables
from tests.support import diffusers_unet as parity

TOKENS = 77


def config_of(args: argparse.Namespace) -> tuple[dict, int, int]:
    """The fields of the U-Net, the image size, and the width of the text states."""
    if args.preset:
        if not args.preset.startswith("if_i_"):
            sys.exit(f"--preset={args.preset}: this benchmark takes if_i_m, if_i_l, if_i_xl")
        return presets.PRESETS[args.preset].fields, 64, presets.T5_XXL_WIDTH
    width = 64 if args.quick else 96
    fields = dict(
        out_channels=6,
        block_out_channels=(width, 2 * width, 3 * width, 4 * width),
        layers_per_block=2,
        attention=(False, True, True, True),
        cross_attention_dim=4 * width,
        attention_head_dim=32,
        pooling_heads=8,
    )
    return fields, 32 if args.quick else 64, 512


class Pair:
    """Our network and diffusers', with the same weights."""

    def __init__(self, args: argparse.Namespace):
        fields, self.size, self.text_width = config_of(args)
        parity.TEXT_WIDTH = self.text_width
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        defaults = dict(
            pooling_heads=UNet.pooling_heads, attention_head_dim=UNet.attention_head_dim
        )
        theirs = randomize(parity.diffusers_unet(defaults | fields), 0)
        self.model = UNet(**fields, dtype=jnp.dtype(args.dtype))
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), *self.inputs(1))
        self.variables = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, args.dtype), variables(theirs, shapes, UNET_RENAMES)
        )
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        self.torch_dtype = getattr(torch, args.dtype)
        self.theirs = theirs.to(self.device, self.torch_dtype)
        self.call = torch.compile(self.theirs) if self.device == "cuda" else self.theirs

    def inputs(self, batch: int) -> tuple[np.ndarray, ...]:
        """Noisy images, times, text states."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(batch, self.size, self.size, 3)).astype(np.float32)
        text = rng.normal(size=(batch, TOKENS, self.text_width)).astype(np.float32)
        return x, np.linspace(10, 990, batch).astype(np.float32), text

    def torch_inputs(self, batch: int) -> list[torch.Tensor]:
        """The same for the peer."""
        x, t, text = self.inputs(batch)
        x, text = (
            torch.from_numpy(a).to(self.torch_dtype) for a in (x.transpose(0, 3, 1, 2).copy(), text)
        )
        return [a.to(self.device) for a in (x, torch.from_numpy(t), text)]


def forward(pair: Pair, batch: int, repeats: int) -> Result:
    """One evaluation, as in sampling without guidance."""
    inputs = [jnp.asarray(a) for a in pair.inputs(batch)]
    program = jax.jit(pair.model.apply).lower(pair.variables, *inputs).compile()
    torch_inputs = pair.torch_inputs(batch)

    def ours():
        return program(pair.variables, *inputs).block_until_ready()

    def peer():
        with torch.inference_mode():
            return synchronize(pair.call(*torch_inputs).sample)

    error = relative_error(ours(), peer().float().permute(0, 2, 3, 1).cpu())
    flops = program.cost_analysis()["flops"]
    return compare(
        f"forward, batch {batch}",
        ours,
        peer,
        error=error,
        work=batch,
        unit="images/s",
        flops=flops,
        repeats=repeats,
    )


def forward_backward(pair: Pair, batch: int, repeats: int) -> Result:
    """Gradients of the mean square of the output with respect to all parameters."""
    inputs = [jnp.asarray(a) for a in pair.inputs(batch)]
    loss = lambda variables, *args: jnp.square(pair.model.apply(variables, *args)).mean()  # noqa: E731
    program = jax.jit(jax.grad(loss)).lower(pair.variables, *inputs).compile()
    torch_inputs = pair.torch_inputs(batch)
    pair.theirs.requires_grad_()

    def ours():
        return jax.block_until_ready(program(pair.variables, *inputs))

    def peer():
        pair.theirs.zero_grad()
        pair.call(*torch_inputs).sample.float().square().mean().backward()
        return synchronize(pair.theirs.conv_in.weight.grad)

    gradient = ours()["params"]["conv_in"]["kernel"]
    error = relative_error(gradient, peer().float().permute(2, 3, 1, 0).cpu())
    flops = program.cost_analysis()["flops"]
    return compare(
        f"forward + backward, batch {batch}",
        ours,
        peer,
        error=error,
        work=batch,
        unit="images/s",
        flops=flops,
        repeats=repeats,
    )


def main() -> None:
    """Runs the cases."""
    args = arguments(__doc__, preset="", batch="1")
    torch.set_num_threads(args.threads)
    pair = Pair(args)
    print(f"{pair.parameters / 1e6:.1f}M parameters, {pair.size} px, {args.dtype}, {pair.device}")
    cases = [forward] if args.forward_only else [forward, forward_backward]
    repeats = 5 if args.quick else 9
    results = [case(pair, batch, repeats) for case in cases for batch in args.batch]
    report(results, matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
