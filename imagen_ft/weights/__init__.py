"""Public weights in and out: loads files into our models, exports our runs to diffusers."""

from imagen_ft.weights.loading import load_part, load_t5, load_unet, open_model, open_t5, open_unet
from imagen_ft.weights.lora_file import read_lora
from imagen_ft.weights.part_files import digest, part_folder
from imagen_ft.weights.scheduler_config import scheduler

__all__ = [
    "digest",
    "load_part",
    "load_t5",
    "load_unet",
    "open_model",
    "open_t5",
    "open_unet",
    "part_folder",
    "read_lora",
    "scheduler",
]
