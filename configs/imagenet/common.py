"""What the generators' runs on ImageNet share: arguments, images, and their shrinking.

Azizi et al. 2023 fine-tune a base for 210,000 steps with Adafactor and its super-resolution for
490,000 with Adam, batch 2048. Learning rate, warm-up, average of the weights, text drop and Adam's
moments are Imagen's (Saharia et al. 2022, appendix). Clipping at a norm of 1 and all intervals are
our own.

Arguments of each config, as in `FILE.py:host,data=data/imagenet.zip`:

    host          one host with eight GPUs of 80 GB instead of 256 TPU v4: a quarter of the batch,
                  in microbatches, at the same learning rate
    data          a folder, or a zip, of `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`
    train, val    the names of these two folders in it
    tfds          a folder of imagenet2012 that TFDS prepared, instead of `data`; TFRecord may be at
                  gs://
    runlocal      a few steps of a tiny network at an eighth of the sizes, with a text encoder that
                  needs no download, for a CPU. If `data/imagenet` is missing too, drawn shapes
                  replace the images

The expected times are FLOPs / 40% of the chips' bfloat16 peak: three forward passes per image, or
four where the network recomputes its blocks (`remat`).
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet.images import DATA, real_images

# The longest class name has 37 bytes, and an end token follows.
LOCAL_TEXT = dict(
    max_length=38,
    seed=0,
    model=dict(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, dtype="float32"),
)


def parse(arg: str) -> dict:
    """The arguments of a config, see the module."""
    return arguments.parse(
        arg, data=DATA, train="train", val="val", tfds="", host=False, runlocal=False
    )


def train_source(args: dict) -> dict:
    """The training images."""
    return real_images(args, "train")


def evaluation_source(args: dict) -> dict:
    """Ten validation images per class."""
    return dict(real_images(args, "val"), per_class=10)


def shrink(config: ConfigDict, tiny: str) -> None:
    """Shrinks a run for `runlocal`; `tiny` is the preset that replaces its network."""
    # All stages by the same factor: each one's output is the next one's input.
    for field in ("size", "low_size"):
        config.stage[field] //= 8
    config.crop_size //= 8
    config.stage.unet = dict(preset=tiny, remat=False, dtype="float32")
    config.text = ConfigDict(LOCAL_TEXT)
    config.init_from = ""
    config.mesh.fsdp = 1
    config.batch_size, config.accumulation, config.optimizer.warmup_steps = 8, 1, 2
    config.evaluation_source.per_class, config.evaluation_batch_size = 1, 100
    config.total_steps, config.log_every, config.evaluate_every = 4, 1, 4
    config.checkpoint_every, config.pictures_every = 2, 4
    config.pictures.count, config.pictures.sampler.num_steps = 2, 2
