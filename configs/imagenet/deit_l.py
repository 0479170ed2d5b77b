r"""Trains a DeiT-L (DeiT III) at 192 px on any mix of real and generated images.

python -m classifiers.train --config=configs/imagenet/deit_l.py:arm=real+generated,k=1 \
    --workdir=runs/imagenet/deit_l/real+generated

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:4x4x4` what a chip needs.

"Diversify, Don't Fine-Tune" (2023), table 6. With DeiT III's own binary cross-entropy:
`--config.loss=bce --config.label_smoothing=0.0`. LAMB is You et al. 2020, algorithm 2: the trust
ratio is everywhere; DeiT III's code leaves it away where nothing decays, and clips at a norm of 1.

Hardware: 64 TPU v4, 4.1 hours, or 8 H100, 9.1 hours, by operations; to feed them takes a core for
every 150 to 270 images a second. Expected top-1 (%), real / generated / both: 82.22 / 74.60 / 83.05
(Azizi et al. 2023, table 3; theirs at 224 px).
"""

from configs.imagenet import recognition


def get_config(arg=""):
    return recognition.training(
        arg,
        model=dict(name="deit_l", remat=False),
        size=192,
        epochs=300,
        batch_size=2048,
        optimizer=recognition.transformer("lamb", 3e-3, warmup_epochs=5),
        crop_ratio=1.0,
        augment=dict(randaugment=recognition.deit_rand_augment()),
        mix=dict(mixup=0.8, cutmix=1.0),
        label_smoothing=0.1,
    )
