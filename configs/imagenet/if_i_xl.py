r"""Fine-tunes DeepFloyd IF-I-XL on ImageNet at 64x64.

python -m imagen_ft.finetune --config=configs/imagenet/if_i_xl.py \
    --workdir=runs/imagenet/if_i_xl

Before it, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-XL-v1.0 \
        --to=weights/IF-I-XL
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-XL \
        --to=data/imagenet_text

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

Hardware: 256 TPU v4, 0.79 s a step, 46 hours (10.9 TFLOP an image at 40% of the peak). `:host`, 8
H100: 1.76 s a step, 4.3 days. By `--preflight` (half an hour of a core) a v4 chip needs 16.0 GiB of
its 32, and the compiler estimates 0.498 s a step, half of it in convolutions, 0.287 s being the
least for its FLOPs.
"""

from configs.imagenet import common


def get_config(arg=""):
    return common.training(
        arg,
        stage=common.if_stage("if_i_xl", remat=True, size=64),
        tiny="tiny_if_i",
        optimizer=common.adafactor(),
        total_steps=210_000,
        text=common.IF_TEXT,
        guidance_weight=1.25,
        sampler=common.if_sampler(num_steps=100),
        host_accumulation=8,
        weights="weights/IF-I-XL",
        vlb_weight=0.001,
    )
