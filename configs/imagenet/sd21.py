r"""Fine-tunes Stable Diffusion 2.1 on ImageNet at 768x768, on its latents; it predicts v.

python -m imagen_ft.finetune --config=configs/imagenet/sd21.py \
    --workdir=runs/imagenet/sd21

First, once:

    python -m imagen_ft.weights --from=diffusers:stabilityai/stable-diffusion-2-1 \
        --to=weights/sd21
    python -m imagen_ft.text --class_names=imagenet --template="a photo of a {}" \
        --weights=weights/sd21 --to=data/imagenet_text_sd21

Everything else, including the arguments, is as in `sd15.py`.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one host with eight GPUs of 80 GB, or 32 TPU v4; not run yet.
"""

from configs.imagenet import sd15


def get_config(arg=""):
    config = sd15.get_config(arg, "sd21")
    config.accumulation *= 2  # 96 x 96 latents per image are 2.25 times as many as 64 x 64
    return config
