"""CLIP's ViT-B/16 against transformers in PyTorch: same weights, one process.

python -m tests.benchmarks.clip            # batches of 8, float32
python -m tests.benchmarks.clip --quick    # batches of 2, within a minute or two
python -m tests.benchmarks.clip --plain    # the step without our options of XLA's compiler

Image features, and a step of contrastive training: the gradient of the loss and AdamW, which
PyTorch has in its fused form.
"""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from classifiers.clip.run import ClipRun
from classifiers.contrastive.training import Training
from classifiers.extractors.clip import apply_to_images
from classifiers.weights.clip_files import import_clip
from configs.clip import vit_b16
from launch.runtime.devices.flops import count_flops
from launch.runtime.devices.mesh import make_mesh, put_batch
from launch.runtime.state import state_of
from launch.runtime.training import train_step
from tests.benchmarks.harness import (
    Result,
    add_flags,
    compare,
    matrix_peak,
    read_flags,
    report,
)
from tests.parity.test_clip import torch_pixels
from tests.parity.torch_weights import relative_error
from tests.support import tiny_clips

SIZE, RATE = 224, 1e-6


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
        flops=count_flops(ours, run.variables, images),
        repeats=repeats,
    )


def step(peer: CLIPModel, run: ClipRun, batch: int, repeats: int) -> Result:
    """Pairs a second of both in training; it comes last, for it changes the weights of both."""
    config = vit_b16.get_config()
    config.clip, config.batch_size = run.run.config.clip, batch
    # Losses are compared over two steps, between which the weights have hardly changed.
    config.optimizer.update(learning_rate=RATE, schedule="constant", warmup_steps=0)
    training, mesh = Training.of(config, (SIZE, SIZE, 3)), make_mesh({"data": 1})
    held = [state_of(run.variables, training.tx, training.decays, mesh)]
    program = training.step(mesh)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    text = run.model.text
    tokens = rng.integers(0, text.end_token - 1, (batch, text.max_length), np.int32)
    tokens[:, -1] = text.end_token
    ours_batch = put_batch(
        mesh, {"image": images, "tokens": tokens, "domain": np.zeros(batch, np.int32)}
    )
    pixels, ids = torch_pixels(images / np.float32(127.5) - 1), torch.from_numpy(tokens).long()
    own = config.optimizer
    adamw = torch.optim.AdamW(
        peer.train().parameters(),
        RATE,
        (own.b1, own.b2),
        own.eps,
        own.weight_decay,
        fused=True,
    )

    def ours() -> float:
        held[0], metrics = program(held[0], ours_batch)
        return float(metrics["loss"])

    def theirs() -> float:
        adamw.zero_grad()
        loss = peer(input_ids=ids, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        adamw.step()
        return float(loss.detach())

    # The first step's loss, and the second's: of the gradient.
    error = max(abs(ours() / theirs() - 1) for _ in range(2))
    return compare(
        f"clip_vit_b16 contrastive step, batch {batch}",
        ours,
        theirs,
        error=error,
        work=batch,
        unit="pairs/s",
        flops=count_flops(program, held[0], ours_batch),
        repeats=repeats,
        in_a_row=2,
    )


def main() -> None:
    """Measures and prints."""
    parser = add_flags(__doc__ or "")
    parser.add_argument("--plain", action="store_true", help="no options of XLA's compiler")
    args = read_flags(parser, batch="8")
    if args.plain:
        train_step.ON_CPUS.clear()
    torch.set_num_threads(args.threads)
    batches = [2] if args.quick else args.batch
    with tempfile.TemporaryDirectory() as folder:
        peer, run = load(Path(folder))
        results = [features(peer, run, batch, 5 if args.quick else 7) for batch in batches]
        # Each of them takes over the weights.
        results += [step(*load(Path(folder) / str(b)), b, 2 if args.quick else 3) for b in batches]
        report(results, matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
