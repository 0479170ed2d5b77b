"""Generates 30 synthetic digits for each of the 30 real ones.

python -m imagen_ft.generate --config=configs/digits/generate.py --workdir=runs/digits/synthetic

Hardware: 2 CPU cores, 1 minute. Expected: 900 images in 6 shards.
"""

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)
    config = common.cascade()
    config.name = "digits_synthetic"
    config.real_source = dict(name="digits", split="train")
    config.copies = 30
    config.images_per_shard = 150
    if args["runlocal"]:
        for stage in config.stages.values():
            stage.sampler.num_steps = 2
    return config
