r"""Few-shot tuning of the CLIP of `clip.py` on CIFAR-10, with and without synthetic images.

python -m classifiers.transfer --config=configs/cifar10/few_shot.py:method=classifier_tuning \
    --workdir=runs/cifar10/few_shot

First run `clip.py`, which knows half of the classes, and `generate.py`. The real shots are taken
from the 50 images per class that neither has seen. Arguments: `method`, `clip`, `synthetic`,
`strategy` and `loss` as in `configs/clip/few_shot.py`, which has the numbers; `data`, `root` as in
`resnet.py`; `runlocal`.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 2 CPU cores, 3 minutes.
"""

from configs import arguments
from configs.cifar10 import common
from configs.clip import few_shot


def get_config(arg=""):
    args = arguments.parse(
        arg,
        method="classifier_tuning",
        clip="runs/cifar10/clip",
        synthetic="runs/cifar10/synthetic",
        strategy="mix",
        loss="both",
        data=common.DATA,
        root="cifar10_sample",
        runlocal=False,
    )
    names = ("method", "clip", "synthetic", "strategy", "loss")
    told = ",".join(f"{name}={args[name]}" for name in names)
    config = few_shot.get_config(told + (",runlocal" if args["runlocal"] else ""))
    config.sets.real.source = common.source(args, "validation")
    config.sets.test.source = common.photographs(args, "test")
    return config
