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

from ml_collections import ConfigDict, config_dict

from configs import arguments

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
    args = arguments.parse(
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
    batch = args["batch"] or batch_size
    real = dict(name="image_folder", path=args["data"], root=args["train"])
    if args["per_class"]:
        real["per_class"] = args["per_class"]
    if args["gamma"]:
        real["long_tail"] = dict(n_max=1300, gamma=args["gamma"])
    sources, epochs = arms(args, real), args["epochs"] or epochs
    images = _num_images(args) * ("real" in sources or args["same_steps"])
    if not args["same_steps"]:
        images += args["k"] * NUM_IMAGES * ("generated" in sources)

    def steps(epochs: int) -> int:
        return round(epochs * images / batch)

    optimizer = dict(optimizer, learning_rate=optimizer["learning_rate"] * batch / batch_size)
    # A warm-up sees as many images whatever the arm and the batch.
    warmup = optimizer.pop("warmup_steps", 0) * batch_size / batch
    warmup += optimizer.pop("warmup_epochs", 0) * _num_images(args) / batch
    optimizer["warmup_steps"] = round(warmup)
    if drops:
        optimizer |= dict(schedule="step", boundaries=tuple(map(steps, drops)), factor=0.1)
    crops = dict(size=size, crop=dict(scale=scale, ratio=(3 / 4, 4 / 3)), flip=True)
    config = ConfigDict(
        dict(
            num_classes=NUM_CLASSES,
            train_sources=sources,
            in_memory=False,
            synthetic_weight=config_dict.placeholder(float),
            synthetic_loss_weight=1.0,
            loader_workers=16,
            evaluation_source=dict(name="image_folder", path=args["data"], root=args["val"]),
            evaluation_batch_size=1024,
            seeds=1,
            vmap_seeds=False,
            model=dict(model, dtype="bfloat16"),
            init_from=f"{init_from}/{args['arm']}" if init_from else "",
            batch_size=batch,
            total_steps=steps(epochs),
            augment={} if augment is None else crops | augment,
            evaluation=dict(size=size, crop_ratio=crop_ratio),
            repeats=repeats,
            mix=mix or {},
            loss="cross_entropy",
            label_smoothing=label_smoothing,
            ema=dict(main=dict(decay=ema, schedule="constant")) if ema else {},
            optimizer=optimizer,
            mesh=dict(data=-1, fsdp=1, tensor=1),
            log_every=100,
            evaluate_every=5000,
            checkpoint_every=1000,
            keep_checkpoints=2,
        )
    )
    if args["runlocal"]:
        _shrink(config)
    return config


def _num_images(args: dict) -> int:
    """Real images that the arguments leave of the training set."""
    if args["gamma"]:
        return sum(int(1300 * args["gamma"] ** (-k / 999) + 1e-9) for k in range(NUM_CLASSES))
    return args["per_class"] * NUM_CLASSES or NUM_IMAGES


def arms(args: dict, real: dict) -> dict:
    """The sources of the arm that the arguments name."""
    generated = dict(name="synthetic", path=args["generated"], copies=args["k"])
    found = {
        "real": dict(real=real),
        "generated": dict(generated=generated),
        "real+generated": dict(real=real, generated=generated),
    }
    if args["arm"] not in found:
        raise ValueError(f"arm={args['arm']}: there is {', '.join(found)}")
    return found[args["arm"]]


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
