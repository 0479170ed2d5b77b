r"""Chooses generated photographs of CIFAR-10's kinds by a classifier of the real ones.

python -m imagen_ft.filter --config=configs/cifar10/filter.py --workdir=runs/cifar10/filter

Before it, `generate.py` and `resnet.py:arm=real`. Arguments: `generated`, a generated set;
`extractor`, a run of classifiers.train; `copies`, that are looked at of the set, 0 for all;
`share`, to keep of each class, 0 for all that are more probable than by chance; `data`, `root` as
in `resnet.py`; `runlocal`.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU or 2 CPU cores, some minutes.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common


def get_config(arg=""):
    args = arguments.parse(
        arg,
        generated="runs/cifar10/generated",
        extractor="runs/cifar10/classifiers/real",
        copies=0,
        share=0.0,
        data=common.DATA,
        root="cifar10_sample",
        runlocal=False,
    )
    source = dict(name="synthetic", path=args["generated"])
    if args["copies"]:
        source["copies"] = args["copies"]
    extractor = dict(name="classifier", path=args["extractor"], seed=0, ema="main", best=False)
    confidence = dict(score="confidence", extractor=extractor)
    if args["share"]:
        confidence |= dict(share=args["share"], each_class=True)
    else:
        confidence["limit"] = "chance"
    config = ConfigDict()
    config.generated = dict(source=source)
    config.real = dict(source=common.source(args, "train"))
    config.filters = dict(confidence=confidence)
    config.combine = "all"  # or any
    config.per_class = 0  # images that are drawn of each; 0 takes all that pass
    config.balance = False
    config.seed = 0  # of the draws
    config.batch_size = 500
    config.num_shown = 2 if args["runlocal"] else 10  # pictures
    return config
