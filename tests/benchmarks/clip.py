"""Image features of CLIP's ViT-B/16 against transformers in PyTorch: same weights, one process.

python -m tests.benchmarks.clip            # batches of 8, float32
python -m tests.benchmarks.clip --quick    # batches of 2, within a minute or two
"""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from classifiers.clip.run import ClipRun
from classifiers.extractors.clip import apply_to_images
from classifiers.weights.clip_files import import_clip
from tests.benchmarks.harness import Result, arguments, compare, report
from tests.parity.test_clip import torch_pixels
from tests.parity.torch_weights import relative_error
from tests.support import tiny_clips

SIZE = 224


def load(folder: Path) -> tuple[CLIPModel, ClipRun]:
    """The peer with random weights, and ours with the same ones."""
    torch.manual_seed(0)
    peer = CLIPModel(CLIPConfig(vision_config=dict(patch_size=16))).eval()
    tiny_clips.save(peer, folder / "source", tokenizer=False, size=SIZE)
    import_clip(str(folder / "source"), str(folder / "run"), "transformers", "clip_vit_b16")
    return peer, ClipRun.open(folder / "run")


def features(peer: CLIPModel, run: ClipRun, batch: int, repeats: int) -> Result:
    """Images per second for both, from pixels to features."""
    images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    pixels = torch_pixels(images / np.float32(127.5) - 1)
    ours = jax.jit(functools.partial(apply_to_images, run.model))

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        return peer.get_image_features(pixels).pooler_output

    error = relative_error(ours(run.variables, images)["features"], theirs())
    return compare(
        f"clip_vit_b16 image features, batch {batch}",
        lambda: jax.block_until_ready(ours(run.variables, images)["features"]),
        theirs,
        error=error,
        work=batch,
        unit="images/s",
        repeats=repeats,
    )


def main() -> None:
    """Measures and prints."""
    args = arguments(__doc__ or "", preset="clip_vit_b16", batch="8")
    torch.set_num_threads(args.threads)
    batches = [2] if args.quick else args.batch
    with tempfile.TemporaryDirectory() as folder:
        peer, run = load(Path(folder))
        report([features(peer, run, batch, 5 if args.quick else 7) for batch in batches])


if __name__ == "__main__":
    main()
