r"""Measures the demo's synthetic digits against the real ones, by the features of a classifier.

python -m imagen_ft.evaluate --config=configs/digits/evaluate_images.py --workdir=runs/digits/images

First run the demo (or its commands one by one), which writes runs/digits/synthetic and the
classifier of the pool. The real digits are that pool of 1,000. The 100 held-out digits of
validation are measured too, for comparison. Arguments after the file's name:

    synthetic  folders of synthetic sets, joined by +
    sampled    how many digits the demo's cascade draws on the fly, as one more set; 0 for none
    enlarged   how many digits its 4 -> 8 stage draws from the pool's, shrunk; 0 for none
    extractor  a run of classifiers.train
    runlocal   fewer subsets and directions

Digits drawn on the fly are not stored, except with `--config.sets.sampled.write=FILE.npz`. With
`:synthetic=,sampled=1000,enlarged=1000` no synthetic set is needed.

Hardware: 2 CPU cores, a few seconds, and a minute to draw 1,000 digits. No number here is called
FID, which is for Inception's features.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common
from configs.measures import set_measures


def get_config(arg=""):
    args = arguments.parse(
        arg,
        synthetic="runs/digits/synthetic",
        extractor="runs/digits/classifiers/pool",
        sampled=0,
        enlarged=0,
        runlocal=False,
    )
    folders = list(filter(None, args["synthetic"].split("+")))
    names = [folder.rstrip("/").rpartition("/")[2].replace(".", "_") for folder in folders]
    if len(set(names)) < len(names) or {"validation", "sampled", "enlarged"} & set(names):
        raise ValueError(f"synthetic={args['synthetic']}: two sets have one name; rename a folder")
    config = ConfigDict()
    config.sets = {
        name: dict(source=dict(name="synthetic", path=folder))
        for name, folder in zip(names, folders, strict=True)
    }
    if args["sampled"]:
        config.sets["sampled"] = dict(
            cascade=common.cascade(), num_images=args["sampled"], labels="balanced", write=""
        )
    if args["enlarged"]:
        cascade = common.cascade()
        del cascade.stages.base4
        low = dict(source=dict(name="digits", split="pool"))
        config.sets["enlarged"] = dict(
            cascade=cascade, num_images=args["enlarged"], labels="real", low=low, write=""
        )
    config.sets["validation"] = dict(source=dict(name="digits", split="validation"))
    config.reference = dict(
        statistics="",  # an npz to use instead of the source
        source=dict(source=dict(name="digits", split="pool")),
        held_out=dict(source=dict(name="digits", split="validation")),
    )
    config.extractor = dict(
        name="classifier", path=args["extractor"], seed=0, ema="main", best=False
    )
    config.batch_size = 100
    set_measures(config, subset_size=100, without=("spatial_frechet",))
    config.measures = (*config.measures, "recognizability", "diversity")
    config.num_worst = 8  # pictures
    if args["runlocal"]:
        config.kernel.subsets = 10
        config.sliced.num_directions = 100
    return config
