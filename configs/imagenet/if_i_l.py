r"""Fine-tunes DeepFloyd IF-I-L on ImageNet at 64x64.

python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py \
    --workdir=runs/imagenet/if_i_l

Before it, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 \
        --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

Hardware: 256 TPU v4, 0.12 s a step, 7 hours (1.7 TFLOP an image at 40% of the peak). `:host`, 8
H100: 0.28 s a step, 16 hours. By `--preflight` a v4 chip needs 10.2 GiB of its 32, and the compiler
estimates 0.107 s a step, half of it in convolutions and attention's products, 0.051 s being the
least for its FLOPs.
"""

from configs.imagenet import common


def get_config(arg=""):
    return common.training(
        arg,
        stage=common.if_stage("if_i_l", remat=False, size=64),
        tiny="tiny_if_i",
        optimizer=common.adafactor(),
        total_steps=210_000,
        text=common.IF_TEXT,
        guidance_weight=1.25,
        sampler=common.if_sampler(num_steps=100),
        host_accumulation=4,
        weights="weights/IF-I-L",
        vlb_weight=0.001,
    )
