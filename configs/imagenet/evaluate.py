r"""Evaluates ImageNet classifiers on the validation images and five shifted sets, and under attack.

python -m classifiers.evaluate --config=configs/imagenet/evaluate.py \
    --workdir=runs/imagenet/classifiers

First put runs of classifiers.train, or imports of classifiers.weights, into that folder, each for
the 1,000 classes in the order of the WordNet ids. Arguments after the file's name:

    sets      some of those below, joined by +: sets=val+v2+r (all by default)
    data      a folder or zip that has the folders `val` and `train`
    val       the folder in it with the validation images
    tfds      a folder of imagenet2012 that TFDS prepared, instead of these
    train     the folder in it with the training images; read only for gamma
    shifts    the folder with the other sets
    gamma     for runs on the long tail of n_max=1300 with this gamma: adds the accuracy on many-,
              medium- and few-shot classes
    runlocal  one validation image per class, and four attacked images: to see that it runs

| set | images | folder | unpacked from |
|---|---|---|---|
| val | 50,000 | data/imagenet/val | ILSVRC2012_img_val.tar, sorted into a folder per WordNet id |
| v2 | 10,000 | imagenetv2-matched-frequency-format-val | imagenetv2-matched-frequency.tar.gz |
| sketch | 50,889 | sketch | ImageNet-Sketch.zip |
| r | 30,000 | imagenet-r | imagenet-r.tar |
| a | 7,500 | imagenet-a | imagenet-a.tar |
| objectnet | 18,574 | objectnet-1.0/images | objectnet-1.0.zip |

If a set is missing, the command stops at once with a line that says where to get it.
`classifiers/evaluation/label_maps.py` defines what counts as right on each. The attacks are on
5,000 validation images. A radius of 4/255 is usual for networks trained against attacks; others get
almost nothing right there, hence 1/255 as well. The numbers of the attacks are our own.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU. For each checkpoint, the 167,000 images take as long as decoding them, at about
270 per second on each core; the attacks cost as much as training on about 125,000 images.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet.images import DATA, real_images

# Label map, folder, and the archive that it is unpacked from.
SHIFTS = {
    "v2": (
        "imagenet_v2",
        "imagenetv2-matched-frequency-format-val",
        "imagenetv2-matched-frequency.tar.gz of huggingface.co/datasets/vaishaal/ImageNetV2",
    ),
    "sketch": (
        "imagenet_sketch",
        "sketch",
        "ImageNet-Sketch.zip of huggingface.co/datasets/songweig/imagenet_sketch",
    ),
    "r": ("imagenet_r", "imagenet-r", "imagenet-r.tar of github.com/hendrycks/imagenet-r"),
    "a": (
        "imagenet_a",
        "imagenet-a",
        "imagenet-a.tar of github.com/hendrycks/natural-adv-examples",
    ),
    "objectnet": (
        "objectnet",
        "objectnet-1.0/images",
        "objectnet-1.0.zip of objectnet.dev, which gives the password",
    ),
}
_PREPARE_VAL = "sort ILSVRC2012_img_val.tar of image-net.org into one folder a WordNet id"


def get_config(arg=""):
    args = arguments.parse(
        arg,
        sets="",
        data=DATA,
        train="train",
        val="val",
        tfds="",
        shifts="data",
        gamma=0,
        runlocal=False,
    )
    sets = {"val": _set("", real_images(args, "val"), _PREPARE_VAL)}
    for name, (label_map, folder, archive) in SHIFTS.items():
        source = dict(name="image_folder", path=f"{args['shifts']}/{folder}", root="")
        sets[name] = _set(label_map, source, f"unpack {archive}")
    default = "val" if args["runlocal"] else "+".join(sets)
    chosen = (args["sets"] or default).split("+")
    if any(name not in sets for name in chosen):
        raise ValueError(f"sets must be some of {'+'.join(sets)}, got {args['sets']}")
    config = ConfigDict()
    config.sets = {name: sets[name] for name in chosen}
    config.runs = ()
    config.checkpoint = dict(best=False, ema="main")
    config.baseline = "real"
    config.batch_size = 256
    config.calibration_bins = 15  # Guo et al. 2017
    config.attacks = dict()
    if "val" in chosen:
        images = dict(sets=("val",), num_images=5000)
        pgd = dict(kind="pgd", steps=10, seed=0, **images)
        # Epsilon and step size in 255ths.
        config.attacks.fgsm_1 = dict(kind="fgsm", epsilon=1, **images)
        config.attacks.pgd_1 = dict(pgd, epsilon=1, step_size=0.25)
        config.attacks.pgd_4 = dict(pgd, epsilon=4, step_size=1)
    config.shots = dict()
    if args["gamma"]:
        # "Diversify, Don't Fine-Tune" (2023, appendix B).
        config.shots.source = dict(
            real_images(args, "train"),
            long_tail=dict(n_max=1300, gamma=args["gamma"]),
        )
        config.shots.many, config.shots.few = 800, 300  # images per class: above, below
    if args["runlocal"]:
        config.batch_size = 8
        for entry in config.sets.values():
            entry.source.per_class = 1
        for attack in config.attacks.values():
            attack.num_images = 4
            if attack.kind == "pgd":
                attack.steps = 2
    return config


def _set(label_map: str, source: dict, prepare: str) -> dict:
    return dict(source=source, label_map=label_map, prepare=prepare)
