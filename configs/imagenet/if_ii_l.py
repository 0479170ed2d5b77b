r"""Fine-tunes DeepFloyd IF-II-L on ImageNet, 64 -> 256.

python -m imagen_ft.finetune --config=configs/imagenet/if_ii_l.py \
    --workdir=runs/imagenet/if_ii_l

Before it, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-II-L-v1.0 \
        --to=weights/IF-II-L --part=unet
    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

Hardware: 256 TPU v4, 0.87 s a step, 4.9 days (11.9 TFLOP an image at 40% of the peak). `:host`, 8
H100: 1.93 s a step, 11 days. By `--preflight` (45 minutes, over 18 GB) a v4 chip needs 10.8 GiB of
its 32, and the compiler estimates 0.577 s a step, half of it in convolutions, 0.316 s being the
least for its FLOPs.
"""

from configs.imagenet import common


def get_config(arg=""):
    return common.training(
        arg,
        stage=common.if_stage("if_ii_l", remat=True, size=256, low_size=64),
        tiny="tiny_if_ii",
        optimizer=common.adam(),
        total_steps=490_000,
        text=common.IF_TEXT,
        guidance_weight=1.0,
        sampler=common.if_sampler(num_steps=50),
        host_accumulation=8,
        weights="weights/IF-II-L",
        vlb_weight=0.001,
    )
