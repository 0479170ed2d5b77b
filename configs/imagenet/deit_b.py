r"""Trains a DeiT-B on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/deit_b.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/deit_b/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Touvron et al. 2021, table 9; the learning rate is 5e-4 per 512 images.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 32 TPU v4, 3.2 hours (3.2 by operations, 0.1 to decode), or 8 H100, 3.5 hours (3.5 by
operations, 1.1 to decode). Expected top-1 (%), real / synthetic / both: 81.79 / 74.55 / 82.84
(Azizi et al. 2023, table 3).
"""

from configs.imagenet import deit_s


def get_config(arg=""):
    return deit_s.get_config(arg, name="deit_b")
