"""ResNet-50 and ViT-S/16 against transformers in PyTorch: same weights, same images, one process.

python -m tests.benchmarks.classifiers                 # 224 px, batches of 8
python -m tests.benchmarks.classifiers --quick         # 64 px, within a minute or two
python -m tests.benchmarks.classifiers --dtype=bfloat16 --batch=256,512,1024    # on a GPU
python -m tests.benchmarks.classifiers --input --data=imagenet_sample.zip --root=imagenet_sample/128

A training step is the gradient of the cross-entropy and SGD with Nesterov momentum; parameters are
float32. On a GPU the peer is compiled by torch.compile; on a CPU both use --threads threads.
--input measures what the loader costs: steps on images that it reads and augments, against steps on
a batch that stays in memory, and how many cores would feed the step.
"""

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import torch
import transformers

from classifiers import weights
from classifiers.training.losses import soft_cross_entropy, soft_targets
from classifiers.training.training import Training
from configs.imagenet import resnet50, vit_s16
from input_pipeline import sources
from input_pipeline.augment.policy import make_augment
from input_pipeline.batches import loader
from launch.cpus import usable_cpus
from launch.runtime.config import plain
from launch.runtime.devices.flops import count_flops
from launch.runtime.devices.mesh import make_mesh, put_batch
from launch.runtime.state import create_state
from tests.benchmarks.harness import (
    Result,
    add_flags,
    as_on_tpu,
    compare,
    matrix_peak,
    read_flags,
    report,
    synchronize,
)

# The gradients of new networks of this depth have norms above 1,000: a larger rate diverges.
CLASSES, RATE, MOMENTUM = 1000, 1e-6, 0.9
PEERS = {
    "resnet50": lambda size: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=CLASSES)
    ),
    "vit_s16": lambda size: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=384,
            num_attention_heads=6,
            intermediate_size=1536,
            image_size=size,
            num_labels=CLASSES,
        )
    ),
}


class Pair:
    """Our network and transformers', with the same weights."""

    def __init__(self, name: str, size: int, dtype: str):
        torch.manual_seed(0)
        self.name, self.size = name, size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.half = dtype == "bfloat16"
        theirs = PEERS[name](size)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            transformers.ViTImageProcessor(
                image_mean=[0.5] * 3, image_std=[0.5] * 3
            ).save_pretrained(folder)
            self.model, _ = weights.build(Path(folder), dtype=jnp.dtype(dtype))
            self.variables = weights.load(Path(folder), self.model, (size, size, 3))
        self.theirs = theirs.to(self.device)
        self.call = torch.compile(self.theirs) if self.device == "cuda" else self.theirs

    def batch(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images in [-1, 1], NHWC, and labels."""
        rng = np.random.default_rng(0)
        images = rng.uniform(-1, 1, (count, self.size, self.size, 3)).astype(np.float32)
        return images, rng.integers(0, CLASSES, count)

    def torch_batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for the peer, channels last in memory, where its convolutions are fastest."""
        images, labels = self.batch(count)
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return images.to(self.device), torch.from_numpy(labels).to(self.device)

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """The peer's logits."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self.call(images).logits


def inference(pair: Pair, count: int, repeats: int) -> Result:
    """The logits of a batch."""
    images = jnp.asarray(pair.batch(count)[0])
    program = jax.jit(pair.model.apply).lower(pair.variables, images).compile()
    pair.theirs.eval()
    theirs = pair.torch_batch(count)[0]

    def ours():
        return program(pair.variables, images).block_until_ready()

    def peer():
        with torch.inference_mode():
            return synchronize(pair.run(theirs))

    expected = peer().float().cpu().numpy()
    error = float(np.abs(ours() - expected).max() / np.abs(expected).max())
    flops = count_flops(pair.model.apply, pair.variables, images)
    name = f"{pair.name} inference, batch {count}"
    common = dict(error=error, work=count, unit="images/s", flops=flops, repeats=repeats)
    return compare(name, ours, peer, **common)


def training(pair: Pair, count: int, repeats: int) -> Result:
    """A step of SGD with momentum; batch statistics are used and updated."""
    images, labels = (jnp.asarray(a) for a in pair.batch(count))
    tx = optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)

    def step(variables, state, images, labels):
        def loss_of(params):
            logits, found = pair.model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return soft_cross_entropy(logits, soft_targets(labels, CLASSES)).mean(), found

        (loss, found), grads = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, state = tx.update(grads, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {**variables, **found, "params": params}, state, loss

    variables = jax.tree.map(jnp.copy, pair.variables)
    held = [variables, tx.init(variables["params"])]
    with as_on_tpu():
        flops = count_flops(step, *held, images, labels)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*held, images, labels).compile()
    pair.theirs.train()
    peer_images, peer_labels = pair.torch_batch(count)
    sgd = torch.optim.SGD(pair.theirs.parameters(), RATE, momentum=MOMENTUM, nesterov=True)

    def ours():
        *held[:], loss = program(*held, images, labels)
        return float(loss)

    def peer():
        sgd.zero_grad()
        loss = torch.nn.functional.cross_entropy(pair.run(peer_images).float(), peer_labels)
        loss.backward()
        sgd.step()
        return synchronize(loss).item()

    # The loss of the first step, and of the second, which depends on the gradient.
    error = max(abs(ours() / peer() - 1) for _ in range(2))
    name = f"{pair.name} training, batch {count}"
    common = dict(error=error, work=count, unit="images/s", flops=flops, repeats=repeats)
    return compare(name, ours, peer, **common)


def measure_input(args: argparse.Namespace) -> None:
    """Steps fed by the loader against steps on one batch in memory."""
    for name, module in (("resnet50", resnet50), ("vit_s16", vit_s16)):
        config = module.get_config()
        config.model.dtype, config.batch_size = args.dtype, args.batch[0]
        if args.size:
            config.augment.size = config.evaluation.size = args.size
        size = config.augment.size
        run = Training.of(config, CLASSES, (size, size, 3))
        source = sources.load(dict(name="image_folder", path=args.data, root=args.root))
        augment, mesh = make_augment(plain(config.augment)), make_mesh({"data": -1})
        data = loader.batches(source, config.batch_size, 0, augment=augment)
        init = functools.partial(run.model.init, jax.random.key(0))
        state = create_state(init, (jnp.zeros((1, size, size, 3)),), run.tx, run.averages, mesh)
        step, first = run.step(mesh), data[0]
        fixed = put_batch(mesh, first)
        state, metrics = step(state, fixed)
        jax.block_until_ready(metrics)
        times: dict[str, list[float]] = {"memory": [], "loader": []}
        batches = loader.iterate(data, 0, args.steps, workers=args.workers)
        for batch in batches:
            for kind in times:
                start = time.perf_counter()
                if kind == "loader":
                    batch = next(batches, None)
                    if batch is None:
                        break
                state, metrics = step(state, put_batch(mesh, batch) if kind == "loader" else fixed)
                jax.block_until_ready(metrics)
                times[kind].append(time.perf_counter() - start)
        _print_input(name, config, times, data)


def _print_input(
    name: str, config: ml_collections.ConfigDict, times: dict[str, list[float]], data: object
) -> None:
    """The two speeds, and the cores that would feed the step."""
    memory, fed = (statistics.median(times[kind]) for kind in ("memory", "loader"))
    start = time.process_time()
    for k in range(3):
        data[k]  # type: ignore[index]
    core_seconds = (time.process_time() - start) / 3
    count = config.batch_size
    print(
        f"{name}, {config.model.dtype}, batch {count}: {count / memory:,.1f} images/s in memory, "
        f"{count / fed:,.1f} fed ({memory / fed:.0%}); a core prepares {count / core_seconds:,.0f} "
        f"images/s, so the step needs {core_seconds / memory:.2f} of them ({usable_cpus()} here)"
    )


def main() -> None:
    """Runs the cases."""
    parser = add_flags(__doc__)
    parser.add_argument("--size", type=int, help="of the images, in pixels")
    parser.add_argument("--input", action="store_true", help="what the loader costs")
    parser.add_argument("--data", help="a folder or zip of images, for --input")
    parser.add_argument("--root", default="", help="the folder in it that holds the classes")
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    args = read_flags(parser, preset="", batch="8")
    torch.set_num_threads(args.threads)
    if args.input:
        args.steps = args.steps or 20
        measure_input(args)
        return
    size, repeats = args.size or (64 if args.quick else 224), 5 if args.quick else 9
    cases = [inference] if args.forward_only else [inference, training]
    results = []
    for name in [args.preset] if args.preset else PEERS:
        for count in args.batch:
            for case in cases:
                results.append(case(Pair(name, size, args.dtype), count, repeats))
    print(f"{size} px, {args.dtype}, {jax.default_backend()}")
    report(results, matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
