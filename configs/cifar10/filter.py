r"""Filters synthetic CIFAR-10 photographs by a classifier that was trained on the real ones.

python -m imagen_ft.filter --config=configs/cifar10/filter.py --workdir=runs/cifar10/filter

First run `generate.py` and `resnet.py:arm=real`. Arguments: `synthetic`, a synthetic set;
`extractor`, a run of classifiers.train; `copies`, how many of the set's copies to consider, 0 for
all; `share` of each class to keep, 0 for all images whose class is more probable than by chance;
`data`, `root` as in `resnet.py`; `runlocal`.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU or 2 CPU cores, a few minutes.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common


def get_config(arg=""):
    args = arguments.parse(
        arg,
        synthetic="runs/cifar10/synthetic",
        extractor="runs/cifar10/classifiers/real",
        copies=0,
        share=0.0,
        data=common.DATA,
        root="cifar10_sample",
        runlocal=False,
    )
    source = dict(name="synthetic", path=args["synthetic"])
    if args["copies"]:
        source["copies"] = args["copies"]
    extractor = dict(name="classifier", path=args["extractor"], seed=0, ema="main", best=False)
    confidence = dict(score="confidence", extractor=extractor)
    if args["share"]:
        confidence |= dict(share=args["share"], each_class=True)
    else:
        confidence["limit"] = "chance"
    config = ConfigDict()
    config.synthetic = dict(source=source)
    config.real = dict(source=common.source(args, "train"))
    config.filters = dict(confidence=confidence)
    config.combine = "all"  # of the filters must pass; or "any"
    config.per_class = 0  # images to draw from those that pass; 0 keeps all
    config.balance = False
    config.seed = 0  # of the draws
    config.batch_size = 500
    config.num_shown = 2 if args["runlocal"] else 10  # pictures
    return config
