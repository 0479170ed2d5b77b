"""What the classifiers on CIFAR-10's photographs share; the recipes are our own.

Arguments of each config, as in `FILE.py:arm=real+synthetic,k=2`:

    arm           real, synthetic (the synthetic set), or real+synthetic: their plain union
    k             copies to use of the synthetic set; each has the size of the real set
    synthetic     the folder of that set, made by `imagen_ft.generate`
    same_steps    as many steps as with real images alone; else an epoch is all images of the arm
    data, root    a folder or a zip, and the folder in it that holds `train/airplane/*` and so on
    images        the number of real training images, for the length of an epoch
    cpu           a smaller network and fewer epochs, for two cores
    runlocal      a few steps of a tiny network
"""

from ml_collections import ConfigDict

from configs import arguments, classification
from configs.cifar10 import common

# The sample's 12,500, less the 50 per class that are held out for validation.
NUM_IMAGES = 12_000


def parse(arg: str) -> dict:
    """The arguments of a config, see the module."""
    return arguments.parse(
        arg,
        arm="real",
        k=1,
        synthetic="runs/cifar10/synthetic",
        same_steps=False,
        data=common.DATA,
        root="cifar10_sample",
        images=NUM_IMAGES,
        cpu=False,
        runlocal=False,
    )


def train_sources(args: dict) -> dict:
    """The images of the arm."""
    synthetic = dict(name="synthetic", path=args["synthetic"], copies=args["k"])
    return classification.arm_sources(args["arm"], common.source(args, "train"), synthetic)


def epochs_to_steps(epochs: int, batch_size: int, args: dict) -> int:
    """Steps for this many epochs over all images of the arm."""
    real, synthetic = (name in args["arm"].split("+") for name in ("real", "synthetic"))
    sets = 1 if args["same_steps"] else real + args["k"] * synthetic
    return round(epochs * sets * args["images"] / batch_size)


def shrink(config: ConfigDict) -> None:
    """Shrinks a run for `runlocal`, all but the model."""
    config.total_steps, config.optimizer.warmup_steps, config.batch_size = 20, 2, 16
    config.log_every, config.evaluate_every, config.checkpoint_every = 5, 20, 10
