r"""Measures the demo's generated digits against the real ones, as a classifier of digits sees them.

python -m imagen_ft.evaluate --config=configs/digits/evaluate_images.py --workdir=runs/digits/images

Before it, the demo (or what it does as single commands), which leaves runs/digits/generated and the
classifier of the pool. The real digits are that pool of 1,000; those held out are the 100 of
validation, of which the same is measured for comparison. What can be said behind the name of the
file:

    generated  folders of generated sets, joined by +
    sampled    so many digits that the demo's cascade draws on the way, as one more set; 0 for none
    enlarged   so many digits that its 4 -> 8 stage draws from the pool's, shrunk; 0 for none
    extractor  a run of classifiers.train
    runlocal   fewer subsets and directions

What is drawn on the way is written nowhere, unless `--config.sets.sampled.write=FILE.npz`. With
`:generated=,sampled=1000,enlarged=1000` nothing need be generated before.

Hardware: 2 CPU cores, some seconds, and a minute for 1,000 digits that are drawn. No number of it
is called FID: that is on Inception alone.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common
from configs.measures import set_measures


def get_config(arg=""):
    args = arguments.parse(
        arg,
        generated="runs/digits/generated",
        extractor="runs/digits/classifiers/pool",
        sampled=0,
        enlarged=0,
        runlocal=False,
    )
    folders = list(filter(None, args["generated"].split("+")))
    names = [folder.rstrip("/").rpartition("/")[2].replace(".", "_") for folder in folders]
    if len(set(names)) < len(names) or {"validation", "sampled", "enlarged"} & set(names):
        raise ValueError(f"generated={args['generated']}: two sets have one name; rename a folder")
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
        statistics="",  # an npz that takes the place of the source's
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
