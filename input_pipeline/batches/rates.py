"""What images of training cost in CPU time, by how they are stored."""

# Images of ImageNet a second and CPU, read, cropped to 224 px, mirrored, with two layers of
# RandAugment, as printed by python -m tests.benchmarks.input --data=imagenet.zip on a busy virtual
# machine with two CPUs of an AMD EPYC. A raw copy is of `input_pipeline.prepare`. A CPU that is one
# of a core's two threads may do half of this while the other one works.
RATES = {"JPEG files": 480, "a raw copy": 1400}


def cpu_seconds(images: int) -> dict[str, float]:
    """CPU seconds that so many images take, by how they are stored: a key of `RATES`."""
    return {name: images / rate for name, rate in RATES.items()}
