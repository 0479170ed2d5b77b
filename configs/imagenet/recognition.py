"""What the classifiers on ImageNet share: arms, sources, and the length of a run.

Arguments of each config, as in `FILE.py:arm=real+generated,k=3,data=data/imagenet.zip`:

    arm           real, generated, or real+generated: the plain union (Azizi et al. 2023)
    k             copies of the real set's size that are taken of the generated set
    generated     the folder of that set, made by `imagen_ft.generate`
    same_steps    as many steps as with real images alone; else an epoch is all of the arm
    epochs, batch other ones; the learning rate keeps its proportion to the batch
    per_class     so many real images a class, drawn at random (low data: 100, 200 or 500)
    gamma         real images in a long tail from 1,300 a class down to 1,300 / gamma
    data          a folder, or a zip, of `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`
    train, val    what these two folders in it are called
    runlocal      four steps of a tiny network at 32 px: it starts on a CPU

"Diversify, Don't Fine-Tune" (2023, section 3.3) mixes otherwise; that is the arm real+generated
with `--config.synthetic_weight=0.5 --config.synthetic_loss_weight=0.6`, and with a ResNet also
`--config.model.auxiliary_batch_norm=True`.

Low data and long tails there are `epochs=100` with `per_class` or `gamma`, and for real images
alone `batch=2048` with `--config.optimizer.learning_rate=0.88`. An epoch is of what is there.

The expected times are FLOPs / 40% of the chips' bfloat16 peak for real images alone; they are
printed by `python -m tests.benchmarks.recipes`.
"""

from ml_collections import ConfigDict

from configs import arguments, classification

NUM_IMAGES, NUM_CLASSES = 1_281_167, 1000
_LOCAL = {
    "resnet": dict(stage_sizes=(1, 1), width=8),
    "vit": dict(width=16, depth=2, num_heads=2, drop_path=0.1),
}


def rand_augment(layers: int, magnitude: int) -> dict:
    """RandAugment with every layer done."""
    return dict(layers=layers, magnitude=magnitude)


def deit_rand_augment() -> dict:
    """DeiT's: two layers at 9 with a deviation of 0.5, each done half of the time (timm)."""
    return dict(layers=2, magnitude=9, std=0.5, increasing=True, probability=0.5)


def momentum(
    learning_rate: float, weight_decay: float = 1e-4, *, nesterov: bool = False, **schedule
) -> dict:
    """SGD with momentum 0.9 and a warm-up of five epochs."""
    return dict(
        name="sgd",
        learning_rate=learning_rate,
        schedule="cosine",
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=weight_decay,
        clip_norm=0.0,
        warmup_epochs=5,
        **schedule,
    )


def transformer(name: str, learning_rate: float, weight_decay: float = 0.05, **fields) -> dict:
    """AdamW or LAMB; neither tokens nor positions decay."""
    return dict(
        name=name,
        learning_rate=learning_rate,
        schedule="cosine",
        weight_decay=weight_decay,
        no_decay=("positions", "token"),
        clip_norm=0.0,
        **fields,
    )


def resnet(arg: str, name: str) -> ConfigDict:
    """Azizi et al. 2023, section 5.4; RandAugment as ResNet-RS-50 has it."""
    return training(
        arg,
        model=dict(name=name, dropout=0.25, auxiliary_batch_norm=False),
        size=224,
        epochs=130,
        batch_size=4096,
        optimizer=momentum(1.6),
        crop_ratio=0.875,
        augment=dict(randaugment=rand_augment(2, 10)),
        label_smoothing=0.1,
    )


def resnet_rs(arg: str, name: str, *, size: int, magnitude: int) -> ConfigDict:
    """Bello et al. 2021, table 7 and appendix; the evaluation's crop leaves 32 px away."""
    return training(
        arg,
        model=dict(name=name, auxiliary_batch_norm=False),
        size=size,
        epochs=350,
        batch_size=4096,
        optimizer=momentum(1.6, weight_decay=4e-5),
        crop_ratio=size / (size + 32),
        augment=dict(randaugment=rand_augment(2, magnitude)),
        label_smoothing=0.1,
        ema=0.9999,
    )


def deit(arg: str, name: str) -> ConfigDict:
    """Touvron et al. 2021, table 9."""
    return training(
        arg,
        model=dict(name=name),
        size=224,
        epochs=300,
        batch_size=1024,
        optimizer=transformer("adamw", 1e-3, warmup_epochs=5, warmup_from=1e-6),
        crop_ratio=0.875,
        augment=dict(randaugment=deit_rand_augment(), erasing=0.25),
        mix=dict(mixup=0.8, cutmix=1.0),
        label_smoothing=0.1,
        repeats=3,
        ema=0.99996,
    )


def training(
    arg: str,
    *,
    model: dict,
    size: int,
    epochs: int,
    batch_size: int,
    optimizer: dict,
    crop_ratio: float,
    augment: dict | None,
    label_smoothing: float = 0.0,
    mix: dict | None = None,
    repeats: int = 1,
    ema: float = 0.0,
    init_from: str = "",
    scale: tuple[float, float] = (0.08, 1.0),
    drops: tuple[int, ...] = (),
) -> ConfigDict:
    """A run of classifiers.train.

    Args:
        arg: arguments of the config; see the module.
        model: `name` and the fields that differ from the preset's.
        size: of images, pixels each way.
        epochs: over all images of the arm.
        batch_size: which the learning rate is meant for.
        optimizer: see `momentum` and `transformer`; `warmup_epochs` become steps.
        crop_ratio: of the evaluation's central crop.
        augment: besides the random resized crop and the flip; None trains on the central crop.
        label_smoothing: towards uniform.
        mix: Mixup and CutMix.
        repeats: how often an image is in a batch.
        ema: decay of the weights' average; 0 is without.
        init_from: folder of the runs to begin with, one for each arm.
        scale: of the random resized crops, as shares of the image's area.
        drops: epochs at which the learning rate falls to a tenth.
    """
    args = _parse(arg)
    sources, batch = _sources(args), args["batch"] or batch_size
    images = _num_images(args, sources)

    def steps(epochs: int) -> int:
        return round(epochs * images / batch)

    optimizer = _for_batch(optimizer, args, batch, batch_size)
    if drops:
        optimizer |= dict(schedule="step", boundaries=tuple(map(steps, drops)), factor=0.1)
    crops = dict(size=size, crop=dict(scale=scale, ratio=(3 / 4, 4 / 3)), flip=True)
    config = classification.make_config(
        num_classes=NUM_CLASSES,
        train_sources=sources,
        loader_workers=16,
        evaluation_source=dict(name="image_folder", path=args["data"], root=args["val"]),
        evaluation_batch_size=1024,
        model=dict(model, dtype="bfloat16"),
        init_from=f"{init_from}/{args['arm']}" if init_from else "",
        batch_size=batch,
        total_steps=steps(args["epochs"] or epochs),
        augment={} if augment is None else crops | augment,
        evaluation=dict(size=size, crop_ratio=crop_ratio),
        repeats=repeats,
        mix=mix or {},
        label_smoothing=label_smoothing,
        ema=dict(main=dict(decay=ema, schedule="constant")) if ema else {},
        optimizer=optimizer,
        log_every=100,
        evaluate_every=5000,
        checkpoint_every=1000,
    )
    if args["runlocal"]:
        _shrink(config)
    return config


def _parse(arg: str) -> dict:
    return arguments.parse(
        arg,
        arm="real",
        k=1,
        generated="data/imagenet_synthetic",
        same_steps=False,
        epochs=0,
        batch=0,
        per_class=0,
        gamma=0.0,
        data="data/imagenet",
        train="train",
        val="val",
        runlocal=False,
    )


def _sources(args: dict) -> dict:
    real = dict(name="image_folder", path=args["data"], root=args["train"])
    if args["per_class"]:
        real["per_class"] = args["per_class"]
    if args["gamma"]:
        real["long_tail"] = dict(n_max=1300, gamma=args["gamma"])
    generated = dict(name="synthetic", path=args["generated"], copies=args["k"])
    return classification.arm_sources(args["arm"], real, generated)


def _num_images(args: dict, sources: dict) -> int:
    """Images of an epoch of the arm."""
    images = _num_real(args) * ("real" in sources or args["same_steps"])
    if not args["same_steps"]:
        images += args["k"] * NUM_IMAGES * ("generated" in sources)
    return images


def _num_real(args: dict) -> int:
    """Real images that the arguments leave of the training set."""
    if args["gamma"]:
        return sum(int(1300 * args["gamma"] ** (-k / 999) + 1e-9) for k in range(NUM_CLASSES))
    return args["per_class"] * NUM_CLASSES or NUM_IMAGES


def _for_batch(optimizer: dict, args: dict, batch: int, meant: int) -> dict:
    """The optimiser for another batch than was meant; its warm-up in steps."""
    optimizer = dict(optimizer, learning_rate=optimizer["learning_rate"] * batch / meant)
    # A warm-up sees as many images whatever the arm and the batch.
    warmup = optimizer.pop("warmup_steps", 0) * meant / batch
    warmup += optimizer.pop("warmup_epochs", 0) * _num_real(args) / batch
    return dict(optimizer, warmup_steps=round(warmup))


def _shrink(config: ConfigDict) -> None:
    """What the run is with `runlocal`."""
    kind = "resnet" if config.model.name.startswith("resnet") else "vit"
    config.model.update(_LOCAL[kind], dtype="float32")
    if "drop_path" in config.model and kind == "resnet":
        del config.model["drop_path"]
    config.init_from, config.loader_workers = "", 0
    config.evaluation.size = 32
    if config.augment:
        config.augment.size = 32
    config.batch_size, config.total_steps, config.optimizer.warmup_steps = 8, 4, 1
    if "boundaries" in config.optimizer:
        config.optimizer.boundaries = (2, 3)
    config.evaluation_batch_size = 100
    config.log_every, config.evaluate_every, config.checkpoint_every = 1, 4, 2
