"""What the generators' runs on ImageNet share: arguments, images, and a glance at each.

Azizi et al. 2023 fine-tune a base for 210,000 steps with Adafactor and its super-resolution for
490,000 with Adam, batch 2048. Imagen (Saharia et al. 2022, appendix) has the learning rate, the
warm-up, the average of the weights, the text drop and Adam's moments. Clipping at a norm of 1 and
all intervals are ours.

Arguments of each config, as in `FILE.py:host,data=data/imagenet.zip`:

    host          one host with eight GPUs of 80 GB instead of 256 TPU v4: a quarter of the batch,
                  in parts; the learning rate stays
    data          a folder, or a zip, of `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`
    train, val    what these two folders in it are called
    tfds          a folder of imagenet2012 that TFDS prepared, instead of `data`; TFRecord may be at
                  gs://
    runlocal      a few steps of a tiny network at an eighth of the sizes, with a text encoder that
                  needs no download: it starts on a CPU. Where `data/imagenet` is not there either,
                  drawn shapes stand for the images

The expected times are FLOPs / 40% of the chips' bfloat16 peak: three forward passes an image, four
where the network computes its blocks again (`remat`).
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet.images import DATA, real_images

# The longest class name has 37 bytes; an end token follows.
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
    """Ten validation images a class."""
    return dict(real_images(args, "val"), per_class=10)


def shrink(config: ConfigDict, tiny: str) -> None:
    """What the run is with `runlocal`; `tiny` is the preset that stands for its network."""
    # The same of all stages: the one makes what the next begins with.
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
