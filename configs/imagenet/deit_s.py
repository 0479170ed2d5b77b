r"""Trains a DeiT-S on any mix of real and generated images.

python -m classifiers.train --config=configs/imagenet/deit_s.py:arm=real+generated,k=1 \
    --workdir=runs/imagenet/deit_s/real+generated

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x2x4` what a chip needs.

Touvron et al. 2021, table 9: 5e-4 per 512 images.

Hardware: 16 TPU v4, 1.7 hours, or 8 H100, 0.9 hours, by operations; to feed them takes a core for
every 150 to 270 images a second. Expected top-1 (%), real / generated / both: 78.97 / 72.26 / 80.49
(Azizi et al. 2023, table 3).
"""

from configs.imagenet import recognition


def get_config(arg=""):
    return recognition.deit(arg, "deit_s")
