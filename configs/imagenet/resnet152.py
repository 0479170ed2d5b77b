r"""Trains a ResNet-152 on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/resnet152.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/resnet152/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Azizi et al. 2023, section 5.4, which does not give RandAugment's numbers; these are ResNet-RS-50's.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 32 TPU v4, 0.9 hours (0.9 by operations, 0.1 to decode), or 8 H100, 1.0 hours (1.0 by
operations, 0.5 to decode). Expected top-1 (%), real / synthetic / both: 78.59 / 72.38 / 80.15
(Azizi et al. 2023, table 3).
"""

from configs.imagenet import resnet50


def get_config(arg=""):
    return resnet50.get_config(arg, name="resnet152")
