r"""Measures synthetic ImageNet images: FID, sFID, IS, KID, MIND, precision, recall and more.

python -m imagen_ft.evaluate --config=configs/imagenet/evaluate_images.py:synthetic=data/set \
    --workdir=runs/imagenet/images

It needs Inception's weights where torch-fidelity or pytorch-fid put them (or `weights=FILE`).
Arguments after the file's name:

    synthetic   folders of synthetic sets, joined by +
    folders     folders or zips of images, one folder per class, joined by +
    npz         files of samples, as ADM writes them, joined by +
    sampled     how many images a cascade draws on the fly, equally many of each class (Azizi et al.
                choose by 10,000)
    cascade     draws them: if (the default) or imagen, at `size`, as in `generate.py`; or sd15,
                sd21 or sdxl, as in `generate_sd.py`
    statistics  an npz of reference statistics, such as ADM's VIRTUAL_imagenet256_labeled.npz, to
                which the Frechet distances are taken instead of to the real images
    extractor   inception (the default), dinov2 or classifier
    weights     its file or folder, see `imagen_ft/evaluation/extractors.py`
    size        pixels each way to which real images are cropped and resized
    infinity    also the Frechet distance for infinitely many images, for sets of 25,000 and more
    per_class   real training images of each class
    data, train, val, tfds   the real images, as in `images.py`
    runlocal    2 real images per class, few subsets, and distances of fewer images than dimensions

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Images drawn on the fly are not stored, except with `--config.sets.sampled.write=FILE.npz`; an
interrupted drawing resumes. The held-out images are the 50,000 of validation. Numbers are only
comparable for equal numbers of images; papers use 50,000. Hardware: one GPU; decoding, at about 270
photographs per second on each core, takes as long as the features.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import generate, generate_sd
from configs.imagenet.images import DATA, real_images
from configs.measures import set_measures
from configs.stable_diffusion.common import MODELS

# Fields of each extractor, and the measures that it cannot give.
EXTRACTORS = {
    "inception": (dict(rule="tf1"), ("recognizability",)),
    "dinov2": (
        dict(positions="hub", pixels="torch", size=224),
        ("spatial_frechet", "inception_score", "recognizability"),
    ),
    "classifier": (dict(seed=0, ema="main", best=False), ("spatial_frechet",)),
}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        synthetic="",
        folders="",
        npz="",
        sampled=0,
        cascade="if",
        infinity=False,
        statistics="",
        extractor="inception",
        weights="",
        size=256,
        per_class=50,
        data=DATA,
        train="train",
        val="val",
        tfds="",
        runlocal=False,
    )
    if args["extractor"] not in EXTRACTORS:
        raise ValueError(
            f"extractor must be one of {', '.join(EXTRACTORS)}, got {args['extractor']}"
        )
    fields, without = EXTRACTORS[args["extractor"]]
    config = ConfigDict()
    config.sets = _sets(args)
    train, val = real_images(args, "train"), real_images(args, "val")
    config.reference = dict(
        statistics=args["statistics"],
        source=dict(source=dict(train, per_class=args["per_class"]), square=args["size"]),
        held_out=dict(source=val, square=args["size"]),
    )
    config.extractor = dict(name=args["extractor"], path=args["weights"], **fields)
    config.batch_size = 256
    set_measures(config, subset_size=1000, without=without)
    of_classes = ("recognizability", "diversity")
    config.measures += tuple(measure for measure in of_classes if measure not in without)
    if args["infinity"]:
        config.measures = ("frechet_infinity", *config.measures)
    config.num_worst = 16  # pictures
    if args["runlocal"]:
        config.batch_size = 8
        config.reference.source.source.per_class = 2
        config.reference.held_out.source.per_class = 2
        config.allow_few_images = True
        config.kernel.subsets, config.kernel.subset_size = 10, 100
    return config


def _sets(args: dict) -> dict:
    kinds = {"synthetic": "synthetic", "folders": "image_folder", "npz": "npz"}
    sets: dict = {}
    for argument, kind in kinds.items():
        for path in filter(None, args[argument].split("+")):
            name = path.rstrip("/").rpartition("/")[2].removesuffix(".npz").replace(".", "_")
            if name in sets:
                raise ValueError(f"{argument}={path}: another set is called {name}; rename it")
            sets[name] = dict(source=dict(name=kind, path=path))
    if args["sampled"]:
        if "sampled" in sets:
            raise ValueError("sampled: another set has this name; rename it")
        size, local = args["size"], ",runlocal" if args["runlocal"] else ""
        if args["cascade"] in MODELS:
            cascade = generate_sd.get_config(f"model={args['cascade']}{local}")
        else:
            cascade = generate.get_config(f"cascade={args['cascade']},size={size}{local}")
        fields = {name: cascade[name] for name in _OF_CASCADE}
        sets["sampled"] = dict(
            cascade=fields, num_images=args["sampled"], labels="balanced", write=""
        )
    return sets or dict(imagenet_synthetic=_DEFAULT)


# The fields of `generate.py` that say what to draw, and how.
_OF_CASCADE = ("batch_size", "class_names", "mesh", "negative_prompt", "seed", "stages", "text")
_DEFAULT = dict(source=dict(name="synthetic", path="data/imagenet_synthetic"))
