r"""Trains a ResNet-RS-101 at 192 px on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/resnet_rs101_192.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/resnet_rs101_192/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Bello et al. 2021, table 7 and appendix; dropout 0.25 is the preset's. Evaluation resizes to 32 px
more and crops the centre, as TensorFlow's own training does.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 32 TPU v4, 1.2 hours (1.2 by operations, 0.1 to decode), or 8 H100, 1.4 hours (1.4 by
operations, 1.2 to decode). Expected top-1 (%), real / synthetic / both: 81.29 / 73.63 / 81.80
(Azizi et al. 2023, table 3).
"""

from configs.imagenet import resnet_rs50_160


def get_config(arg=""):
    return resnet_rs50_160.get_config(arg, name="resnet_rs_101", size=192, magnitude=15)
