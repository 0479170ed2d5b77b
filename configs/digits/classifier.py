r"""Trains a small ResNet on one arm: real, generated, real+generated or pool.

python -m classifiers.train --config=configs/digits/classifier.py:arm=real+generated,k=10 \
    --workdir=runs/digits/classifiers/real+generated_10x

k is the number of generated sets of the real set's size. Hardware: 2 CPU cores, a minute. Expected
validation accuracy: real 79%, real+generated (k=30) 93%, pool 99%.
"""

from configs import arguments, classification


def get_config(arg=""):
    args = arguments.parse(arg, arm="real", k=30, runlocal=False)
    config = classification.make_config(
        train_sources=classification.arm_sources(
            args["arm"],
            real=dict(name="digits", split="train"),
            generated=dict(name="synthetic", path="runs/digits/generated", copies=args["k"]),
            pool=dict(name="digits", split="pool"),
        ),
        in_memory=True,
        evaluation_source=dict(name="digits", split="validation"),
        evaluation_batch_size=100,
        seeds=7,
        model=dict(
            name="resnet",
            stage_sizes=(1, 1, 1),
            width=16,
            bottleneck=False,
            small_stem=True,
            momentum=0.9,
            dtype="float32",
        ),
        batch_size=32,
        total_steps=350,
        augment=dict(size=8, shift=1),
        label_smoothing=0.1,
        optimizer=dict(
            name="sgd",
            learning_rate=0.1,
            schedule="cosine",
            warmup_steps=20,
            weight_decay=5e-4,
            clip_norm=0.0,
        ),
        log_every=25,
        evaluate_every=0,
        checkpoint_every=0,
    )
    if args["runlocal"]:
        config.seeds, config.total_steps = 2, 10
    return config
