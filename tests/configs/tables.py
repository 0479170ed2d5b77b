"""What the tests of the configs look things up in."""

import importlib
import re
import zipfile

import cv2
import numpy as np

from tests.support import ROOT

CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").glob("*/*.py")
    if "def get_config(" in path.read_text()
)
# The papers' numbers: steps, optimiser, parameters, pixels, low-resolution pixels, crops.
IMAGENET = {
    "imagen_base64": (210_000, "adafactor", 2.0e9, 64, 0, 0),
    "imagen_sr256": (490_000, "adam", 600e6, 256, 64, 0),
    "imagen_sr1024": (2_500_000, "adam", 400e6, 1024, 256, 256),
    "if_i_l": (210_000, "adafactor", 935e6, 64, 0, 0),
    "if_i_xl": (210_000, "adafactor", 4305e6, 64, 0, 0),
    "if_ii_l": (490_000, "adam", 1243e6, 256, 64, 0),
}
PARAMETERS = {f"configs/imagenet/{name}.py": row[2] for name, row in IMAGENET.items()}
# Epochs, batch, optimiser, its rate and decay, pixels, parameters (Azizi et al. 2023, table 3, but
# for ResNet-50, where that gives RS-50's; "Diversify, Don't Fine-Tune", 2023, tables 5 and 6).
RECIPES = {
    "cas_resnet50": (90, 1024, "sgd", 0.4, 1e-4, 224, 25.6e6),
    "resnet50": (130, 4096, "sgd", 1.6, 1e-4, 224, 25.6e6),
    "resnet101": (130, 4096, "sgd", 1.6, 1e-4, 224, 45e6),
    "resnet152": (130, 4096, "sgd", 1.6, 1e-4, 224, 60e6),
    "resnet_rs50_160": (350, 4096, "sgd", 1.6, 4e-5, 160, 36e6),
    "resnet_rs101_160": (350, 4096, "sgd", 1.6, 4e-5, 160, 64e6),
    "resnet_rs101_192": (350, 4096, "sgd", 1.6, 4e-5, 192, 64e6),
    "resnet_rs152_224": (350, 4096, "sgd", 1.6, 4e-5, 224, 87e6),
    "vit_s16": (300, 1024, "adamw", 1e-3, 0.1, 224, 22e6),
    "deit_s": (300, 1024, "adamw", 1e-3, 0.05, 224, 22e6),
    "deit_b": (300, 1024, "adamw", 1e-3, 0.05, 224, 86e6),
    "deit_b_384": (30, 512, "adamw", 5e-6, 1e-8, 384, 86e6),
    "deit_l": (300, 2048, "lamb", 3e-3, 0.05, 192, 307e6),
}
RECIPE_FILES = [f"configs/imagenet/{name}.py" for name in RECIPES]
# Arguments besides `runlocal` that change a config: all that its file, or its group's, describes.
VARIANTS = {
    "configs/cifar10/evaluate.py": ["data=cifar10,root=", "data=cifar10.zip,root=a/b,runlocal"],
    "configs/cifar10/finetune_base16.py": ["data=cifar10,root=", "data=cifar10.zip,root=a/b"],
    "configs/cifar10/finetune_sr32.py": ["data=cifar10,root=,runlocal", "data=x.zip,root=a"],
    "configs/cifar10/clip.py": ["classes=all", "classes=dog+cat,data=x.zip,root=a"],
    "configs/cifar10/few_shot.py": [
        "clip=x,synthetic=,strategy=real_first",
        "loss=hard,data=x.zip",
    ],
    "configs/cifar10/filter.py": [
        "share=0.5,copies=2",
        "data=x.zip,root=a,synthetic=x,extractor=y",
    ],
    "configs/cifar10/generate.py": ["k=10", "data=cifar10,root=", "k=2,data=x.zip,root=a,runlocal"],
    **{
        f"configs/cifar10/{name}.py": [
            "cpu",
            "cpu,runlocal",
            "arm=synthetic,synthetic=x",
            "arm=real+synthetic,k=2",
            "arm=real+synthetic,k=3,cpu",
            "arm=real+synthetic,same_steps",
            "arm=real+synthetic,runlocal",
            "data=cifar10,root=",
            "data=x.zip,root=a,images=45000",
        ]
        for name in ("resnet", "vit")
    },
    "configs/cifar10/study.py": [
        "filter=x,copies=3",
        "data=x.zip",
        "synthetic=x",
        "data=x.zip,synthetic=x,runlocal",
    ],
    "configs/cifar10/sweep.py": ["stage=base16", "extractor=x", "data=x.zip,root=a,runlocal"],
    "configs/clip/few_shot.py": [
        "clip=x,synthetic=,strategy=real_first",
        "loss=hard",
        "loss=soft,runlocal",
    ],
    "configs/clip/tiny.py": ["arm=synthetic,synthetic=x", "arm=real+synthetic"],
    "configs/clip/vit_b16.py": [
        "arm=synthetic,synthetic=x",
        "arm=real+synthetic,parquet=x,tokenizer=y",
        "arm=random,data=x,pairs=4000000,epochs=16,batch=4096",
        "imagenet=x.zip,val=a",
        "tfds=x",
    ],
    "configs/clip/zero_shot_digits.py": ["clips=a/x+b/y", "split=validation"],
    "configs/clip/zero_shot.py": [
        "clips=a/x+b/y",
        "templates=80",
        "sets=val+v2",
        "data=x.zip,val=a",
        "tfds=x,shifts=y",
    ],
    "configs/cifar10/distill.py": [
        "stage=base16,steps=128",
        "teacher=x,steps=32",
        "teacher=x,method=consistency,steps=40",
        "guidance=2.0,teacher=x,runlocal",
        "data=x.zip,root=a",
    ],
    "configs/deepfloyd/sample.py": ["size=l", "size=xl", "size=l,runlocal", "hub", "hub,size=l"],
    "configs/stable_diffusion/sample.py": [
        "model=sd21",
        "model=sdxl",
        "model=sdxl,runlocal",
        "hub",
        "hub,model=sdxl",
    ],
    "configs/imagenet/few_shot.py": ["prior=x", "train=x,prior=y"],
    "configs/imagenet/sd15.py": ["weights=x", "data=x.zip,runlocal"],
    "configs/imagenet/generate_sd.py": [
        "model=sd21",
        "model=sdxl,k=10",
        "weights=x,runlocal",
        "tfds=gs://bucket/imagenet2012",
    ],
    "configs/digits/classifier.py": [
        "arm=pool",
        "arm=synthetic",
        "arm=synthetic,k=10",
        "arm=real+synthetic,k=1",
        "arm=real+synthetic,k=10,runlocal",
    ],
    "configs/digits/distill.py": [
        "stage=sr8,steps=8",
        "teacher=x,steps=8",
        "method=consistency,steps=18",
        "guidance=2.0,runlocal",
    ],
    "configs/digits/evaluate.py": ["split=validation"],
    "configs/digits/evaluate_images.py": [
        "synthetic=a/x+a/y.z",
        "extractor=x,runlocal",
        "synthetic=,sampled=40,enlarged=30",
    ],
    "configs/digits/filter.py": ["synthetic=x,extractor=y,copies=1"],
    "configs/digits/fast_study.py": [
        "solvers=dpmpp+unipc,distilled=none",
        "solvers=none,distilled=4x4",
        "settings=8x4+4x4,runs=x",
        "runs=x,runlocal",
    ],
    "configs/digits/sweep.py": [
        "stage=base4",
        "stage=base4,solvers",
        "low=real",
        "extractor=x,runlocal",
    ],
    "configs/digits/study.py": [
        "synthetic=x",
        "synthetic=x,runlocal",
        "filter=x,copies=10",
    ],
    **{
        path: [
            "host",
            "host,runlocal",
            "data=imagenet.zip,train=a,val=b",
            "data=x,runlocal",
            "tfds=gs://bucket/imagenet2012",
        ]
        for path in PARAMETERS
    },
    **{
        path: [
            "arm=real+synthetic,k=3",
            "arm=real+synthetic,k=2,same_steps",
            "arm=synthetic,synthetic=x",
            "arm=real+synthetic,runlocal",
            "batch=1000",
            "epochs=50",
            "per_class=100,epochs=100,batch=2048",
            "arm=real+synthetic,k=2,gamma=50",
            "arm=real+synthetic,tfds=x",
            "data=imagenet.zip,train=a,val=b",
        ]
        for path in RECIPE_FILES
    },
    "configs/imagenet/distill_if_ii_l.py": [
        "host",
        "teacher=x,steps=16",
        "guidance=2.0",
        "teacher=x,runlocal",
        "data=imagenet.zip,train=a,val=b",
        "tfds=gs://bucket/imagenet2012",
    ],
    "configs/imagenet/evaluate.py": [
        "sets=val+r",
        "sets=r",
        "data=x.zip",
        "shifts=/x",
        "gamma=50,train=a",
        "gamma=50,tfds=x",
        "data=x.zip,val=a,train=b,shifts=/y,gamma=100,runlocal",
    ],
    "configs/imagenet/evaluate_images.py": [
        "sampled=10,cascade=imagen,size=64,infinity",
        "sampled=10,runlocal",
        "sampled=10,cascade=sd15,runlocal",
        "synthetic=a/x+b,folders=c,npz=d.npz",
        "statistics=x.npz,size=64,per_class=10",
        "extractor=dinov2,weights=x",
        "extractor=classifier,weights=x",
        "data=x.zip,train=a,val=b",
        "npz=d.npz,tfds=x,runlocal",
    ],
    "configs/imagenet/filter.py": [
        "weights=x,real=16",
        "weights=x,share=0.5,per_class=100",
        "extractor=dinov2,weights=x,real=16,size=64",
        "extractor=clip,weights=x",
        "synthetic=x,data=x.zip,train=a,real=1",
        "tfds=x,real=2,runlocal",
    ],
    "configs/imagenet/generate.py": [
        "size=64",
        "k=10",
        "data=imagenet.zip,train=a",
        "tfds=gs://bucket/imagenet2012",
        "cascade=imagen",
        "cascade=imagen,size=64",
        "cascade=imagen,size=1024,k=3",
        "cascade=imagen,runlocal",
    ],
    **{
        f"configs/imagenet/sweep_{name}.py": [
            "images=10000,weights=x",
            "cas",
            "data=x.zip,train=a,val=b",
            "tfds=x,runlocal",
            *others,
        ]
        for name, others in (("base", []), ("sr256", ["low"]))
    },
    "configs/imagenet/study.py": [
        "data=x.zip",
        "synthetic=x",
        "seeds=3",
        "filter=x",
        "data=x.zip,synthetic=x,runlocal",
    ],
}


def load(path):
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


def command(path):
    """The task's module and the config's path, from the command line that heads the file."""
    found = re.match(r".*?\n\npython -m (\S+) --config=([\w/.]+)", load(path).__doc__, re.S)
    assert found, f"{path} does not begin with its command line"
    return found.groups()


def encoded(image):
    return cv2.imencode(".png", image)[1].tobytes()


def image_zip(path, folders, per_class):
    """Images of random colours, in these folders of a zip."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for folder in folders:
            for i in range(per_class):
                image = np.full((40, 50, 3), rng.integers(0, 256, 3), np.uint8)
                archive.writestr(f"{folder}/{i}.png", encoded(image))
    return path
