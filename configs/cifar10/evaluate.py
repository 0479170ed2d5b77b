r"""Compares classifiers on CIFAR-10's test photographs, also when these are attacked.

python -m classifiers.evaluate --config=configs/cifar10/evaluate.py \
    --workdir=runs/cifar10/classifiers

Before it, runs of classifiers.train in that folder, one an arm. What can be said behind the name of
the file:

    data, root    a folder or zip with `root/test` in it, which holds the folders of the classes
    runlocal      8 images of every class, and shorter attacks

The attacks are of 8/255, the usual ball for CIFAR-10 (Madry et al. 2018, section 5), whose PGD for
evaluation takes 20 steps of 2/255.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU. On the sample's 3,000 test images the attacks cost as much as training on some
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
    config.calibration_bins = 15
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
