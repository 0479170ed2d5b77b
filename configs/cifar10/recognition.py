"""What the classifiers on CIFAR-10's photographs share; the recipes are ours.

Arguments of each config, as in `FILE.py:arm=real+generated,k=2`:

    arm           real, generated, or real+generated: the plain union
    k             copies of the real set's size that are taken of the generated set
    generated     the folder of that set, made by `imagen_ft.generate`
    same_steps    as many steps as with real images alone; else an epoch is all of the arm
    data, root    a folder or a zip, and the folder in it that holds `train/airplane/*` and so on
    images        how many real ones there are to train on, for the length of an epoch
    cpu           a smaller network and fewer epochs, for two cores
    runlocal      some steps of a tiny network
"""

from ml_collections import ConfigDict

from configs import arguments, classification

# Of the sample's 12,500, less 50 a class that training is watched with.
NUM_IMAGES, HELD_OUT = 12_000, 50


def training(
    arg: str, *, full: dict, cpu: dict, tiny: dict, optimizer: dict, epochs: int, cpu_epochs: int
) -> ConfigDict:
    """A run of classifiers.train.

    Args:
        arg: arguments of the config; see the module.
        full: the model.
        cpu: fields of it that differ with `cpu`.
        tiny: the same with `runlocal`.
        optimizer: `learning_rate` is for batches of 256; `warmup_epochs` become steps.
        epochs: over all images of the arm.
        cpu_epochs: the same with `cpu`.
    """
    args = _parse(arg)
    root = f"{args['root']}/train" if args["root"] else "train"
    real = dict(name="image_folder", path=args["data"], root=root, held_out=HELD_OUT)
    generated = dict(name="synthetic", path=args["generated"], copies=args["k"])
    sources = classification.arm_sources(args["arm"], dict(real, split="train"), generated)
    batch = 128 if args["cpu"] else 256
    sets = 1 if args["same_steps"] else ("real" in sources) + args["k"] * ("generated" in sources)
    steps_per_epoch = args["images"] / batch
    optimizer = dict(optimizer, learning_rate=optimizer["learning_rate"] * batch / 256)
    optimizer["warmup_steps"] = round(optimizer.pop("warmup_epochs") * steps_per_epoch)
    config = classification.make_config(
        num_classes=10,
        train_sources=sources,
        in_memory=True,
        evaluation_source=dict(real, split="validation"),
        evaluation_batch_size=500,
        model=dict(full, dtype="bfloat16"),
        batch_size=batch,
        total_steps=round((cpu_epochs if args["cpu"] else epochs) * sets * steps_per_epoch),
        augment=dict(size=32, shift=4, flip=True),
        evaluation=dict(size=32, crop_ratio=1.0),
        label_smoothing=0.1,
        optimizer=optimizer,
        log_every=50,
        evaluate_every=round(steps_per_epoch * (2 if args["cpu"] else 10)),
        checkpoint_every=1000,
    )
    if args["cpu"]:
        config.model.update(cpu, dtype="float32")
    if args["runlocal"]:
        _shrink(config, tiny)
    return config


def _parse(arg: str) -> dict:
    return arguments.parse(
        arg,
        arm="real",
        k=1,
        generated="runs/cifar10/generated",
        same_steps=False,
        data="data/cifar10_sample.zip",
        root="cifar10_sample",
        images=NUM_IMAGES,
        cpu=False,
        runlocal=False,
    )


def _shrink(config: ConfigDict, tiny: dict) -> None:
    """What the run is with `runlocal`."""
    config.model.update(tiny, dtype="float32")
    config.total_steps, config.optimizer.warmup_steps, config.batch_size = 20, 2, 16
    config.log_every, config.evaluate_every, config.checkpoint_every = 5, 20, 10
