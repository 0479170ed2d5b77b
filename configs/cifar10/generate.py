r"""Generates a synthetic CIFAR-10 with the two stages trained before.

python -m imagen_ft.generate --config=configs/cifar10/generate.py --workdir=runs/cifar10/synthetic

First train the two stages, see `sample.py`. Arguments: `k`, the size of the synthetic set in real
sets; `data` and `root` as in `finetune_base16.py`; `runlocal` for a CPU, if the runs had it too.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, minutes for each k. Expected: for every class k times as many images as there are
real ones, in shards of 5,000.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common, sample


def get_config(arg=""):
    args = arguments.parse(arg, k=1, data=common.DATA, root="cifar10_sample", runlocal=False)
    drawn = sample.get_config("runlocal" if args["runlocal"] else "")

    config = ConfigDict()
    config.name = "cifar10_synthetic"
    config.seed = 0
    config.copies = args["k"]
    config.class_names = common.CLASS_NAMES
    config.real_source = common.source(args, "train")
    config.text = drawn.text
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    config.stages = drawn.stages
    config.batch_size = 500
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.images_per_shard = 5000
    config.encoding = dict(size=0, format="png")  # at their own size
    if args["runlocal"]:
        config.batch_size = 80
        config.real_source.per_class = 8
    return config
