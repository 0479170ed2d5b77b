"""Depthwise convolutions of EfficientNet-Lite0: our form for CPUs against XLA's, and PyTorch's.

python -m tests.benchmarks.depthwise            # images of 128 px, batches of 32
python -m tests.benchmarks.depthwise --quick    # batches of 8

Gradients are with respect to inputs and kernel.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from launch.cpus import usable_cpus
from launch.runtime.layers.cpu_depthwise import depthwise
from tests.benchmarks.harness import Result, compare, report

# Pixels of a side, channels, pixels of the window's side, stride.
SHAPES = ((64, 32, 3, 1), (64, 96, 3, 2), (32, 144, 5, 2), (16, 240, 5, 1), (8, 672, 5, 1))


def ours(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Our form, padded as `same`."""
    pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")
    return depthwise((stride, stride), tuple(pads), x, kernel)


def of_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """JAX's own convolution."""
    axes, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    options: dict[str, Any] = dict(dimension_numbers=axes, feature_group_count=groups)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", **options)


def of_torch(x: torch.Tensor, kernel: torch.Tensor, stride: int) -> torch.Tensor:
    """PyTorch's, for images whose channels are last in memory."""
    window = kernel.shape[-1]
    # TensorFlow's rule puts the odd row at the end.
    total = max(window - stride, 0)
    low, high = total // 2, total - total // 2
    padded = torch.nn.functional.pad(x, (low, high, low, high))
    return torch.nn.functional.conv2d(padded, kernel, stride=stride, groups=x.shape[1])


def cases(count: int, shape: tuple[int, ...], gradient: bool, repeats: int) -> list[Result]:
    """Of one shape: ours against each peer."""
    size, channels, window, stride = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, size, size, channels), np.float32)
    kernel = rng.standard_normal((window, window, 1, channels), np.float32)

    def program(convolve: Any) -> Any:
        called = functools.partial(convolve, stride=stride)
        if gradient:
            called = jax.grad(lambda x, kernel: (convolve(x, kernel, stride) ** 2).sum(), (0, 1))
        run = functools.partial(jax.jit(called), jnp.asarray(x), jnp.asarray(kernel))
        return lambda: jax.block_until_ready(run())

    images = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_(gradient)
    weights = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_(gradient)

    def in_torch() -> Any:
        if not gradient:
            with torch.inference_mode():
                return [of_torch(images, weights, stride).permute(0, 2, 3, 1)]
        loss = (of_torch(images, weights, stride) ** 2).sum()
        of_images, of_weights = torch.autograd.grad(loss, (images, weights))
        return [of_images.permute(0, 2, 3, 1), of_weights.permute(2, 3, 1, 0)]

    flops = 2.0 * count * (size // stride) ** 2 * channels * window**2 * (3 if gradient else 1)
    name = f"{size} px, {channels} channels, {window}x{window}/{stride}"
    common = dict(work=count, unit="images/s", flops=flops, repeats=repeats)
    run, results = program(ours), []
    for peer, peer_run in (("XLA", program(of_xla)), ("PyTorch", in_torch)):
        pairs = zip(jax.tree.leaves(run()), jax.tree.leaves(peer_run()), strict=True)
        error = max(float(np.abs(a - np.asarray(b)).max() / np.abs(a).max()) for a, b in pairs)
        case = f"{name}{', gradient' if gradient else ''}, {peer}"
        results.append(compare(case, run, peer_run, error=error, **common))
    return results


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller, fewer repeats")
    count, repeats = (8, 3) if parser.parse_args().quick else (32, 5)
    torch.set_num_threads(usable_cpus())
    report([r for g in (False, True) for shape in SHAPES for r in cases(count, shape, g, repeats)])


if __name__ == "__main__":
    main()
