"""Draws some digits of each class.

python -m imagen_ft.sample --config=configs/digits/sample.py --workdir=runs/samples --prompt=seven

Hardware: 2 CPU cores, half a minute. Expected: samples.png.
"""

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)
    config = common.cascade()
    config.images_per_prompt = 8
    config.show_stages = True
    if args["runlocal"]:
        config.images_per_prompt = 2
        for stage in config.stages.values():
            stage.sampler.num_steps = 2
    return config
