r"""Few-shot tuning of the tiny CLIP of `tiny.py` on digits, with and without synthetic ones.

python -m classifiers.transfer --config=configs/clip/few_shot.py:method=classifier_tuning \
    --workdir=runs/clip/few_shot

First run `tiny.py`, and the demo, which writes runs/digits/synthetic. Arguments after the file's
name:

    method     classifier_tuning
    clip       a run of CLIP
    synthetic  a synthetic set; '' uses none
    strategy   mix, real_first or synthetic_first
    loss       hard, soft, or both with equal weights
    runlocal   two numbers of shots, few epochs

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 2 CPU cores, a minute.
"""

from ml_collections import ConfigDict

from configs import arguments

LOSSES = {"hard": (1.0, 0.0), "soft": (0.0, 1.0), "both": (0.5, 0.5)}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        method="classifier_tuning",
        clip="runs/clip/tiny",
        synthetic="runs/digits/synthetic",
        strategy="mix",
        loss="both",
        runlocal=False,
    )
    if args["loss"] not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {args['loss']}")
    config = ConfigDict()
    config.method = args["method"]
    config.clip = args["clip"]
    config.checkpoint = dict(best=False, ema="main")
    config.templates = "1"
    config.class_names = ""
    config.sets = dict(
        real=dict(source=dict(name="digits", split="pool")),
        test=dict(source=dict(name="digits", split="validation")),
    )
    if args["synthetic"]:
        config.sets.synthetic = dict(source=dict(name="synthetic", path=args["synthetic"]))
    config.shots = (0, 4) if args["runlocal"] else (0, 1, 2, 4, 8, 16)
    config.seeds = 3
    # He et al. 2023: classifier tuning, with all numbers from here to the optimiser.
    config.strategy = args["strategy"]
    hard, soft = LOSSES[args["loss"]]
    config.loss = dict(hard=hard, soft=soft, temperature=2.0)
    config.epochs = 2 if args["runlocal"] else 30
    config.zero_shot = dict(learning_rate=2e-3, batch_size=512)
    config.few_shot = dict(learning_rate=1e-3, real_batch=32, synthetic_batch=512)
    config.optimizer = dict(
        name="adamw", schedule="cosine", warmup_steps=0, weight_decay=0.1, clip_norm=1.0
    )
    config.batch_size = 128
    config.calibration_bins = 15  # Guo et al. 2017
    return config
