r"""Filters the demo's synthetic digits by a classifier of the 30 real ones, and by these digits.

python -m imagen_ft.filter --config=configs/digits/filter.py --workdir=runs/digits/filter

First run the demo (or its commands one by one), which writes runs/digits/synthetic and
runs/digits/classifiers. Arguments: `synthetic`, a synthetic set; `extractor`, a run of
classifiers.train; `copies`, how many of the set's copies to consider, 0 for all; `runlocal`, fewer
pictures.

Hardware: 2 CPU cores, a few seconds.
"""

from ml_collections import ConfigDict

from configs import arguments


def get_config(arg=""):
    args = arguments.parse(
        arg,
        synthetic="runs/digits/synthetic",
        extractor="runs/digits/classifiers/real",
        copies=0,
        runlocal=False,
    )
    source = dict(name="synthetic", path=args["synthetic"])
    if args["copies"]:
        source["copies"] = args["copies"]
    extractor = dict(name="classifier", path=args["extractor"], seed=0, ema="main", best=False)
    config = ConfigDict()
    config.synthetic = dict(source=source)
    config.real = dict(source=dict(name="digits", split="train"))
    config.filters = dict(
        confidence=dict(score="confidence", extractor=extractor, limit="chance"),
        nearest_real=dict(score="nearest_real", extractor=extractor, limit=0.0),
    )
    config.combine = "all"  # of the filters must pass; or "any"
    config.per_class = 0  # images to draw from those that pass; 0 keeps all
    config.balance = False
    config.seed = 0  # of the draws
    config.batch_size = 100
    config.num_shown = 2 if args["runlocal"] else 8  # pictures
    return config
