r"""Chooses the synthetic ImageNet images that are worth training on.

python -m imagen_ft.filter --config=configs/imagenet/filter.py:synthetic=data/set,weights=FOLDER \
    --workdir=runs/imagenet/filter

Arguments after the file's name:

    synthetic   folder of a synthetic set
    copies      how many of its copies to consider; 0 for all
    extractor   classifier (the default), a run of classifiers.train or an import of its weights;
                clip, a run or an import of CLIP, which knows classes by their names (He et al.);
                or dinov2, which has no classes and filters by the nearest real image only
    weights     of the extractor
    share       of each class to keep, such as 0.5; 0 keeps what is more probable than by chance
    per_class   images to draw of each class from those that pass; 0 takes all
    real        real images of each class to compare with; 0 for no comparison
    size        pixels each way to which real images are cropped and resized
    data, train, val, tfds   the real images, as in `images.py`
    runlocal    small batches, 2 real images per class

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU; decoding, at about 270 photographs per second on each core, takes as long as the
features. He et al. (2023) keep what is above chance and draw `per_class` images of it.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet.evaluate_images import EXTRACTORS
from configs.imagenet.images import DATA, real_images

_EXTRACTORS = {
    "classifier": EXTRACTORS["classifier"][0],
    "clip": dict(ema="main", best=False),
    "dinov2": EXTRACTORS["dinov2"][0],
}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        synthetic="data/imagenet_synthetic",
        copies=0,
        extractor="classifier",
        weights="runs/imagenet/resnet50/real",
        share=0.0,
        per_class=0,
        real=0,
        size=256,
        data=DATA,
        train="train",
        val="val",
        tfds="",
        runlocal=False,
    )
    if args["extractor"] not in _EXTRACTORS:
        raise ValueError(
            f"extractor must be one of {', '.join(_EXTRACTORS)}, got {args['extractor']}"
        )
    if args["extractor"] == "dinov2" and not args["real"]:
        raise ValueError(
            "extractor=dinov2 needs real images to compare with; set real, such as real=16"
        )
    fields = _EXTRACTORS[args["extractor"]]
    extractor = dict(name=args["extractor"], path=args["weights"], **fields)
    source = dict(name="synthetic", path=args["synthetic"])
    if args["copies"]:
        source["copies"] = args["copies"]
    config = ConfigDict()
    config.synthetic = dict(source=source)
    config.real = {}
    if count := (2 if args["runlocal"] else args["real"]):
        train = real_images(args, "train")
        config.real = dict(source=dict(train, per_class=count), square=args["size"])
    config.filters = {}
    if args["extractor"] != "dinov2":
        kept = dict(share=args["share"]) if args["share"] else dict(limit="chance")
        config.filters["confidence"] = dict(score="confidence", extractor=extractor, **kept)
    if args["real"]:
        config.filters["nearest_real"] = dict(score="nearest_real", extractor=extractor, limit=0.0)
    config.combine = "all"  # of the filters must pass; or "any"
    config.per_class = args["per_class"]
    config.balance = False
    config.seed = 0  # of the draws
    config.batch_size = 8 if args["runlocal"] else 256
    config.num_shown = 8  # pictures
    return config
