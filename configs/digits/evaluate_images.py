r"""Measures the demo's generated digits against the real ones, as a classifier of digits sees them.

python -m imagen_ft.evaluate --config=configs/digits/evaluate_images.py --workdir=runs/digits/images

Before it, the demo (or what it does as single commands), which leaves runs/digits/generated and the
classifier of the pool. The real digits are that pool of 1,000; those held out are the 100 of
validation, of which the same is measured for comparison. What can be said behind the name of the
file:

    generated  folders of generated sets, joined by +
    extractor  a run of classifiers.train
    runlocal   fewer subsets and directions

Hardware: 2 CPU cores, some seconds. No number of it is called FID: that is on Inception alone.
"""

from ml_collections import ConfigDict

from configs import arguments


def get_config(arg=""):
    args = arguments.parse(
        arg,
        generated="runs/digits/generated",
        extractor="runs/digits/classifiers/pool",
        runlocal=False,
    )
    folders = args["generated"].split("+")
    names = [folder.rstrip("/").rpartition("/")[2].replace(".", "_") for folder in folders]
    if len(set(names)) < len(names) or "validation" in names:
        raise ValueError(f"generated={args['generated']}: two sets have one name; rename a folder")
    config = ConfigDict()
    config.sets = {
        name: dict(source=dict(name="synthetic", path=folder))
        for name, folder in zip(names, folders, strict=True)
    }
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
    config.measures = (
        "frechet",
        "inception_score",
        "kernel",
        "sliced",
        "precision_recall",
        "density_coverage",
        "relative",
        "classes_apart",
        "copying",
    )
    config.allow_few_images = False
    config.inception_score = dict(rule="torch_fidelity", splits=10, seed=2020)
    config.kernel = dict(subsets=100, subset_size=100, seed=2020)
    config.sliced = dict(num_directions=1000, seed=2020)
    config.precision_recall = dict(k=3, comparison="<=")
    config.density_coverage = dict(k=5, comparison="<")
    config.num_worst = 8  # pictures
    if args["runlocal"]:
        config.kernel.subsets = 10
        config.sliced.num_directions = 100
    return config
