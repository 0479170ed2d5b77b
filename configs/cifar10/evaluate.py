r"""Compares classifiers on CIFAR-10's test photographs, and under attack.

python -m classifiers.evaluate --config=configs/cifar10/evaluate.py \
    --workdir=runs/cifar10/classifiers

First train classifiers in that folder, one per arm. Arguments after the file's name:

    data, root    a folder or zip that has the class folders in `root/test`
    runlocal      8 images of each class, and shorter attacks

The attacks have a radius of 8/255, the usual one for CIFAR-10 (Madry et al. 2018, section 5); PGD
takes 20 steps of 2/255, as there in evaluation.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU. On the sample's 3,000 test images the attacks cost as much as training on about
70,000 images, for each seed of each run.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common


def get_config(arg=""):
    args = arguments.parse(arg, data=common.DATA, root="cifar10_sample", runlocal=False)
    config = ConfigDict()
    config.sets = dict(test=dict(source=common.photographs(args, "test")))
    config.runs = ()
    config.checkpoint = dict(best=False, ema="main")
    config.baseline = "real"
    config.batch_size = 256
    config.calibration_bins = 15  # Guo et al. 2017
    # Epsilon and step size in 255ths; num_images=0 attacks all.
    config.attacks = dict(
        fgsm=dict(kind="fgsm", epsilon=8, num_images=0),
        pgd=dict(kind="pgd", epsilon=8, steps=20, step_size=2, seed=0, num_images=0),
    )
    config.shots = dict()
    if args["runlocal"]:
        config.sets.test.source.per_class = 8
        config.batch_size = 16
        config.attacks.pgd.steps = 2
    return config
