r"""Studies what the demo's generated digits are worth to five small networks.

python -m classifiers.study --config=configs/digits/study.py --workdir=runs/digits/study --jobs=2

Before it, the demo (or what it does as single commands), which leaves runs/digits/generated. As
many generated digits as real ones (30), but for scaling, which adds up to ten times as many. With
`:filter=runs/digits/filter,copies=10`, after `filter.py:copies=10`, the study `filters` alone: what
that keeps of ten times as many, against as many drawn at random.

Hardware: 2 CPU cores, an estimated 15 minutes; with `runlocal` 2.6 minutes of one core's time.
Expected: scaling of resnet from 76% (0) over 86% (1x) to 96% (10x).
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(
        arg, generated="runs/digits/generated", filter="", copies=1, runlocal=False
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
    config.generated = args["generated"]
    config.filters = {}  # a work directory of imagen_ft.filter each
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
