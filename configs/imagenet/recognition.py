"""What the classifiers on ImageNet share: arms, sources, and the length of a run.

Arguments of each config, as in `FILE.py:arm=real+synthetic,k=3,data=data/imagenet.zip`:

    arm           real, synthetic (the synthetic set), or real+synthetic: their plain union (Azizi
                  et al. 2023)
    k             copies to use of the synthetic set; each has the size of the real set
    synthetic     the folder of that set, made by `imagen_ft.generate`
    same_steps    as many steps as with real images alone; else an epoch is all images of the arm
    epochs, batch replace the recipe's; the learning rate stays proportional to the batch
    per_class     number of real images per class, drawn at random (low data: 100, 200 or 500)
    gamma         a long tail of real images, from 1,300 per class down to 1,300 / gamma
    data          a folder, or a zip, of `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`
    prepared      a copy of the training images that is read faster, by `input_pipeline.prepare`
    train, val    the names of these two folders in `data`
    tfds          a folder of imagenet2012 that TFDS prepared, instead of `data`
    runlocal      four steps of a tiny network at 32 px, for a CPU; if `data/imagenet` is missing,
                  drawn shapes replace the real images

"Diversify, Don't Fine-Tune" (2023, section 3.3) mixes in another way: the arm real+synthetic with
`--config.synthetic_weight=0.5 --config.synthetic_loss_weight=0.6`, and with a ResNet also
`--config.model.auxiliary_batch_norm=True`.

Its low data and long tails are `epochs=100` with `per_class` or `gamma`, and for real images alone
also `batch=2048` with `--config.optimizer.learning_rate=0.88`. An epoch covers the images that are
left.

The expected times, for real images alone, are the longer of two: FLOPs / 40% of the chips' bfloat16
peak, and decoding JPEG files on all CPUs of the hosts (`input_pipeline.batches.rates`). Both are
printed by `python -m tests.benchmarks.recipes`. With a raw copy by `input_pipeline.prepare`
decoding takes a third, but its 0.4 MB per image must come from memory or fast disks. Where two CPUs
share a core, as on many hosts, decoding may take twice as long.
"""

from ml_collections import ConfigDict

from configs import arguments, classification
from configs.imagenet.images import DATA, real_images

NUM_IMAGES, NUM_CLASSES = 1_281_167, 1000
_LOCAL = {
    "resnet": dict(stage_sizes=(1, 1), width=8),
    "vit": dict(width=16, depth=2, num_heads=2, drop_path=0.1),
}


def parse(arg: str) -> dict:
    """The arguments of a config, see the module; epochs and batch of 0 are the recipe's."""
    return arguments.parse(
        arg,
        arm="real",
        k=1,
        synthetic="data/imagenet_synthetic",
        same_steps=False,
        epochs=0,
        batch=0,
        per_class=0,
        gamma=0.0,
        data=DATA,
        prepared="",
        train="train",
        val="val",
        tfds="",
        runlocal=False,
    )


def train_sources(args: dict) -> dict:
    """The images of the arm."""
    real = real_images(args, "train")
    if args["prepared"]:
        real = dict(name="tfds", path=args["prepared"], split="train")
    if args["per_class"]:
        real["per_class"] = args["per_class"]
    if args["gamma"]:
        real["long_tail"] = dict(n_max=1300, gamma=args["gamma"])
    synthetic = dict(name="synthetic", path=args["synthetic"], copies=args["k"])
    return classification.arm_sources(args["arm"], real, synthetic)


def evaluation_source(args: dict) -> dict:
    """The 50,000 validation images."""
    return real_images(args, "val")


def epochs_to_steps(epochs: int, batch_size: int, args: dict) -> int:
    """Steps for this many epochs over all images of the arm."""
    real, synthetic = (name in args["arm"].split("+") for name in ("real", "synthetic"))
    if args["same_steps"]:
        images = _num_real(args)
    else:
        images = _num_real(args) * real + args["k"] * NUM_IMAGES * synthetic
    return round(epochs * images / batch_size)


def warmup_steps(epochs: int, batch_size: int, args: dict) -> int:
    """Steps for this many epochs over the real images, whatever the arm."""
    return round(epochs * _num_real(args) / batch_size)


def _num_real(args: dict) -> int:
    """Real training images that the arguments leave."""
    if args["gamma"]:
        # Cui et al. 2019; the same counts as `subsets.long_tail_counts` draws.
        return sum(int(1300 * args["gamma"] ** (-k / 999) + 1e-9) for k in range(NUM_CLASSES))
    return args["per_class"] * NUM_CLASSES or NUM_IMAGES


def shrink(config: ConfigDict) -> None:
    """Shrinks a run for `runlocal`."""
    kind = "resnet" if config.model.name.startswith("resnet") else "vit"
    config.model.update(_LOCAL[kind], dtype="float32")
    config.init_from, config.loader_workers = "", 0
    config.evaluation.size = 32
    if config.augment:
        config.augment.size = 32
    config.batch_size, config.total_steps, config.optimizer.warmup_steps = 8, 4, 1
    if "boundaries" in config.optimizer:
        config.optimizer.boundaries = (2, 3)
    config.evaluation_batch_size = 100
    config.log_every, config.evaluate_every, config.checkpoint_every = 1, 4, 2
