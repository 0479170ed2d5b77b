"""Compares all arms on the test digits, which nothing else ever sees.

python -m classifiers.evaluate --config=configs/digits/evaluate.py --workdir=runs/digits/classifiers

`:split=validation` compares them on the digits with which every choice is made.

Hardware: 2 CPU cores, a few seconds.
"""

from ml_collections import ConfigDict

from configs import arguments


def get_config(arg=""):
    args = arguments.parse(arg, split="test", runlocal=False)
    config = ConfigDict()
    config.sets = {args["split"]: dict(source=dict(name="digits", split=args["split"]))}
    config.runs = ()
    config.checkpoint = dict(best=False, ema="main")
    config.baseline = "real"
    config.batch_size = 128
    config.calibration_bins = 15  # Guo et al. 2017
    config.attacks = dict()
    config.shots = dict()
    return config
