"""Zero-shot accuracy of the tiny CLIP of `tiny.py` on the test digits.

python -m classifiers.zero_shot --config=configs/clip/zero_shot_digits.py --workdir=runs/clip/digits

First run `tiny.py`.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 2 CPU cores, a few seconds.
"""

from ml_collections import ConfigDict

from configs import arguments


def get_config(arg=""):
    args = arguments.parse(arg, clips="runs/clip/tiny", split="test", runlocal=False)
    config = ConfigDict()
    config.clips = tuple(args["clips"].split("+"))
    config.checkpoint = dict(best=False, ema="main")
    config.templates = ("own",) if args["runlocal"] else ("1", "own")
    config.own_templates = ("a photo of the number {}.", "the digit {}.")
    config.class_names = ""
    config.sets = {args["split"]: dict(source=dict(name="digits", split=args["split"]))}
    config.baseline = ""
    config.batch_size = 128
    config.calibration_bins = 15  # Guo et al. 2017
    return config
