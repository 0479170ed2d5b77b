"""Features of the Inception of 2015 against the same network in PyTorch: images per second.

python -m tests.benchmarks.inception            # from images of 256 pixels, by pytorch-fid's rule
python -m tests.benchmarks.inception --quick
python -m tests.benchmarks.inception --batch=64,256    # on a GPU
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from classifiers.extractors import inception
from classifiers.models.inception import Inception
from tests.benchmarks.harness import arguments, compare, matrix_peak, report, synchronize
from tests.parity import inception_models
from tests.parity.torch_weights import relative_error

SIZE = 256


def main() -> None:
    """Runs the cases."""
    args = arguments(__doc__, batch="16")
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        theirs = inception_models.make(Path(folder, "weights.pth")).float().to(device)
        variables = jax.tree.map(jnp.asarray, inception.load(Path(folder, "weights.pth")))
    call = torch.compile(theirs) if device == "cuda" else theirs
    apply = functools.partial(inception.apply_to_images, Inception(), "pytorch_fid")
    results = []
    for batch in args.batch:
        images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
        run = jax.jit(lambda v, x: apply(v, x)["features"])
        program = run.lower(variables, images).compile()
        pixels = torch.tensor(images).to(device)

        def peer(pixels=pixels):
            with torch.inference_mode():
                x = pixels.permute(0, 3, 1, 2).float() / 255
                x = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear")
                return synchronize(call(2 * x - 1)["features"])

        ours = functools.partial(program, variables, jnp.asarray(images))
        results.append(
            compare(
                f"inception, batch {batch}",
                lambda ours=ours: ours().block_until_ready(),
                peer,
                error=relative_error(np.asarray(ours()), peer().cpu()),
                work=batch,
                unit="images/s",
                flops=program.cost_analysis()["flops"],
                repeats=3 if args.quick else 9,
            )
        )
    report(results, matrix_peak("float32"))


if __name__ == "__main__":
    main()
