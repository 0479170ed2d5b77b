"""What the runs on CIFAR-10's photographs share.

Arguments of the configs that train stages: `data`, a folder or zip that has the class folders in
`root/train`; `runlocal`, for a CPU: if the default images are missing, drawn shapes replace them.
"""

from ml_collections import ConfigDict

from configs import arguments

DATA = "data/cifar10_sample.zip"
CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Class names have at most ten bytes, and an end token follows.
TEXT = dict(
    max_length=11,
    seed=0,
    model=dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dtype="float32"),
)


def parse(arg: str) -> dict:
    """The arguments of a config, see the module."""
    return arguments.parse(arg, data=DATA, root="cifar10_sample", runlocal=False)


def source(args: dict, split: str) -> dict:
    """The training images, or for `validation` the 50 per class that are held out of them."""
    # The test images are kept for the final comparison of classifiers.
    return dict(photographs(args, "train"), held_out=50, split=split)


def photographs(args: dict, folder: str) -> dict:
    """All images of `train` or `test`; drawn ones with `runlocal` and no data, see the module."""
    root = f"{args['root']}/{folder}" if args["root"] else folder
    source = dict(name="image_folder", path=args["data"], root=root)
    if args["runlocal"] and args["data"] == DATA:
        number = dict(train=dict(images=1250, seed=0), test=dict(images=300, seed=1))[folder]
        source["standin"] = dict(number, class_names=CLASS_NAMES, size=32)
    return source


def shrink(config: ConfigDict) -> None:
    """Shrinks a stage's training for `runlocal`."""
    config.stage.unet.update(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=16,
        num_groups=8,
        cross_num_groups=8,
        dtype="float32",
    )
    config.total_steps, config.optimizer.warmup_steps, config.batch_size = 20, 2, 16
    config.log_every, config.evaluate_every, config.checkpoint_every = 5, 10, 10
    config.pictures_every, config.evaluation_draws = 20, 1
    config.pictures.sampler.num_steps = 2
