r"""Zero-shot accuracy of CLIP on ImageNet's validation images and its five shifted sets.

python -m classifiers.zero_shot --config=configs/clip/zero_shot.py --workdir=runs/clip/zero_shot

First import the weights once, here from the Hugging Face Hub:

    python -m classifiers.weights --from=transformers:openai/clip-vit-base-patch16 \
        --to=runs/clip/vit_b16

Arguments after the file's name:

    clips      runs of CLIP, joined by +
    templates  sets of sentences, joined by +: 1, 7, 80
    sets, data, val, tfds, shifts   as in `configs/imagenet/evaluate.py`
    runlocal   one validation image per class, and one sentence

Published top-1 on the validation images with 80 sentences: ViT-B/32 63.2, B/16 68.3, L/14 75.5,
ResNet-50 59.6; a few points lower with one sentence.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU. Decoding, at about 270 photographs per second on each core, takes as long as the
features; the 80,000 sentences take two minutes.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import evaluate
from configs.imagenet.images import DATA


def get_config(arg=""):
    args = arguments.parse(
        arg,
        clips="runs/clip/vit_b16",
        templates="1+7+80",
        sets="",
        data=DATA,
        val="val",
        tfds="",
        shifts="data",
        runlocal=False,
    )
    images = {name: args[name] for name in ("sets", "data", "val", "tfds", "shifts")}
    given = ",".join(f"{name}={value}" for name, value in images.items())
    of_images = evaluate.get_config(given + (",runlocal" if args["runlocal"] else ""))
    config = ConfigDict()
    config.clips = tuple(args["clips"].split("+"))
    config.checkpoint = dict(best=False, ema="main")
    config.templates = ("1",) if args["runlocal"] else tuple(args["templates"].split("+"))
    config.class_names = "imagenet"
    config.sets = of_images.sets
    config.baseline = ""
    config.batch_size = of_images.batch_size
    config.calibration_bins = 15  # Guo et al. 2017
    return config
