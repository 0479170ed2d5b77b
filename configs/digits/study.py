r"""Studies what the demo's synthetic digits are worth to five small networks.

python -m classifiers.study --config=configs/digits/study.py --workdir=runs/digits/study --jobs=2

First run the demo (or its commands one by one), which writes runs/digits/synthetic. There are as
many synthetic digits as real ones (30), except in scaling, which adds up to ten times as many. With
`:filter=runs/digits/filter,copies=10`, after `filter.py:copies=10`, only the study `filters` runs:
the digits that the filter keeps of ten times as many, against equally many drawn at random.

Hardware: 2 CPU cores, an estimated 15 minutes; with `runlocal` 2.6 minutes on one core. Expected:
resnet scales from 76% (0) through 86% (1x) to 96% (10x).
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(
        arg, synthetic="runs/digits/synthetic", filter="", copies=1, runlocal=False
    )
    classifier = "configs/digits/classifier.py" + (":runlocal" if args["runlocal"] else "")
    networks = {
        "resnet": (),
        "narrow": ("model.width=8",),
        "wide": ("model.width=32",),
        "deep": ("model.stage_sizes=(2, 2, 2)",),
        "bottleneck": ("model.bottleneck=True",),
    }
    config = ConfigDict()
    config.name = "digits"
    config.studies = ("cas", "scaling", "models", "per_class")
    config.models = {
        label: dict(config=classifier, overrides=overrides) for label, overrides in networks.items()
    }
    config.models_of = dict(
        cas=("resnet",), scaling=("resnet",), models=tuple(networks), per_class=("resnet",)
    )
    config.copies = args["copies"]
    config.scaling_copies = tuple(range(11))
    config.synthetic = args["synthetic"]
    config.filters = {}  # name -> workdir of imagen_ft.filter
    config.overrides = ()
    config.seeds = 0
    config.evaluation = dict(config="configs/digits/evaluate.py", set="test")
    config.environment = common.ENVIRONMENT
    if args["filter"]:
        config.studies, config.filters["filter"] = ("filters",), args["filter"]
        config.models_of.filters = ("resnet",)
    if args["runlocal"]:
        config.models_of.models = ("resnet", "narrow")
        config.scaling_copies = (0, 1)
    return config
