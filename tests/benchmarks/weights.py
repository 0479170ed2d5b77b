"""Time and memory to import and export weights; diffusers loads the same files.

python -m tests.benchmarks.weights [--quick]

Each case runs in processes of its own, one per repeat: a random U-Net in one float32 file. Memory
is the peak of resident memory beyond that after the imports and the same work on a tiny model, as a
multiple of the model's bytes; pages of files that a process has mapped count.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from imagen_ft import weights
from imagen_ft.weights.exporting import export_weights
from imagen_ft.weights.importing import import_weights
from imagen_ft.weights.tensor_rules import UNET_RULES
from imagen_ft.weights.unet_config import build_unet
from launch.runtime.checkpoints import safetensors_io
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from launch.runtime.reports.tables import text_table
from tests.imagen_ft.weights.tiny_weights import write_part
from tests.support import ROOT

# Like DeepFloyd IF's base models, with narrower text states.
WIDTHS = {"quick": 96, "full": 192}
CASES = ("load", "import", "load the import", "export", "load, diffusers")


def config(width):
    return dict(
        _class_name="UNet2DConditionModel",
        act_fn="gelu",
        addition_embed_type="text",
        addition_embed_type_num_heads=16,
        attention_head_dim=32,
        block_out_channels=[width, 2 * width, 3 * width, 4 * width],
        cross_attention_dim=4 * width,
        cross_attention_norm="group_norm",
        down_block_types=["ResnetDownsampleBlock2D"] + 3 * ["SimpleCrossAttnDownBlock2D"],
        encoder_hid_dim=1024,
        encoder_hid_dim_type="text_proj",
        in_channels=3,
        layers_per_block=3,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        out_channels=6,
        resnet_time_scale_shift="scale_shift",
        up_block_types=3 * ["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"],
    )


def write_model(folder, width):
    """Writes random weights; returns their bytes."""
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/config.json").write_text(json.dumps(config(width)))
    _, shapes = build_unet(config(width), "")
    mappings = tensor_mappings(shapes, UNET_RULES)
    float32 = np.dtype(np.float32)
    tensors = {name: (mapping.file_shape, float32) for name, mapping in mappings.items()}
    rng = np.random.default_rng(0)
    safetensors_io.write_model(
        folder / "unet",
        "diffusion_pytorch_model",
        None,
        tensors,
        lambda name, dtype: 0.02 * rng.standard_normal(tensors[name][0], dtype),
    )
    return sum(int(np.prod(shape)) * 4 for shape, _ in tensors.values())


def resident(field):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def measure(work):
    """Seconds, additional peak bytes, and a checksum of what is returned."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before, start = resident("VmRSS"), time.perf_counter()
    result = work()
    seconds, peak = time.perf_counter() - start, resident("VmHWM") - before
    return {"seconds": seconds, "peak": peak, "sum": result}


def child(case, folder):
    if case == "load, diffusers":
        work = peer
    else:
        work = functools.partial(ours, case)
    with tempfile.TemporaryDirectory() as tiny:
        unet = Path(tiny, "unet")
        write_part(unet, "unet")
        if case in ("load the import", "export"):
            ours("import", tiny)
        work(tiny)
    found = measure(lambda: work(folder))
    found["sum"] = sum(found["sum"]) if isinstance(found["sum"], list) else None
    print(json.dumps(found))


def peer(folder):
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(f"{folder}/unet")
    return [float(torch.linalg.vector_norm(p)) for p in model.parameters()]


def ours(case, folder):
    if case == "import":
        return import_weights(folder, f"{folder}/imported")
    if case == "export":
        return export_weights(f"{folder}/imported", f"{folder}/exported")
    _, params = weights.load_unet(folder if case == "load" else f"{folder}/imported")
    return [float(np.linalg.norm(np.asarray(p).reshape(-1))) for p in jax.tree.leaves(params)]


def ask(case, folder):
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.weights", case, str(folder)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(quick):
    repeats = 1 if quick else 3
    results = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in range(repeats):
            folder = Path(temporary, str(repeat))
            size = write_model(folder, WIDTHS["quick" if quick else "full"])
            for case in CASES:
                results[case].append(ask(case, folder))
            unet = "unet/diffusion_pytorch_model.safetensors"
            if (folder / unet).read_bytes() != (folder / "exported" / unet).read_bytes():
                sys.exit("the exported file is another one")
    sums = [run["sum"] for runs in results.values() for run in runs if run["sum"] is not None]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-4)  # the libraries sum in different orders
    print(f"{size / 1e6:.0f} MB, {repeats} repeats: median (least to most)")
    lines, rows = [], []
    for case, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        middle, memory = statistics.median(seconds), max(run["peak"] for run in runs) / size
        spread = f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        rows.append([case, spread, f"{size / middle / 1e9:.2f}", f"{memory:.2f}"])
        lines.append({"case": case, "ours": middle, "unit": "s", "memory_ratio": memory})
    print(text_table(["case", "seconds", "GB/s", "memory / model"], rows))
    peer = lines.pop()
    for line in lines:
        own = {"peer": None, "ratio": None}
        if line["case"].startswith("load"):
            own = {"peer": peer["ours"], "ratio": peer["ours"] / line["ours"]}
            own["peer_memory_ratio"] = peer["memory_ratio"]
        print(json.dumps({**line, **own, "model_bytes": size}))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CASES:
        child(*sys.argv[1:3])
    elif sys.argv[1:] in ([], ["--quick"]):
        main(quick=bool(sys.argv[1:]))
    else:
        sys.exit((__doc__ or "").strip())
