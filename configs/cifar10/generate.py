r"""Generates a synthetic CIFAR-10 with the two stages that were trained before.

python -m imagen_ft.generate --config=configs/cifar10/generate.py --workdir=runs/cifar10/generated

Before it, the two runs that `sample.py` names. Arguments: `k`, how many times the real set; `data`
and `root` as in `finetune_base16.py`; `runlocal` for a CPU, where the runs had it as well.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, minutes for each k. Expected: as many images of each class as there are to train
on, 5,000 in each shard.
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
    config.negative_prompt = ""  # what guidance leads away from; none is no text
    config.stages = drawn.stages
    config.batch_size = 500
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.images_per_shard = 5000
    config.encoding = dict(size=0, format="png")  # as large as they are
    if args["runlocal"]:
        config.batch_size = 80
        config.real_source.per_class = 8
    return config
