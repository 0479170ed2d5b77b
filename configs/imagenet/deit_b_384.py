r"""Fine-tunes a DeiT-B at 384 px, on any mix of real and generated images.

python -m classifiers.train --config=configs/imagenet/deit_b_384.py:arm=real+generated,k=1 \
    --workdir=runs/imagenet/deit_b_384/real+generated

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Touvron et al. 2021, section 5: the rate is constant. It begins with the run of `deit_b.py` of the
same arm, runs/imagenet/deit_b/ARM; `--config.init_from=DIR` names another.

Hardware: 32 TPU v4, 1.0 hours, or 8 H100, 1.1 hours, by operations; to feed them takes a core for
every 150 to 270 images a second. Expected top-1 (%), real / generated / both: 83.16 / 75.45 / 83.75
(Azizi et al. 2023, table 3).
"""

from configs.imagenet import recognition


def get_config(arg=""):
    return recognition.training(
        arg,
        model=dict(name="deit_b_384"),
        size=384,
        epochs=30,
        batch_size=512,
        optimizer=dict(
            recognition.transformer("adamw", 5e-6, weight_decay=1e-8),
            schedule="constant",
            warmup_steps=0,
        ),
        crop_ratio=1.0,
        augment=dict(randaugment=recognition.deit_rand_augment(), erasing=0.25),
        mix=dict(mixup=0.8, cutmix=1.0),
        label_smoothing=0.1,
        repeats=3,
        init_from="runs/imagenet/deit_b",
    )
