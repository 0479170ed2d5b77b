"""What training images cost in CPU time, by storage format."""

# ImageNet images per second and CPU: read, cropped to 224 px, flipped, with two layers of
# RandAugment. Printed by python -m tests.benchmarks.input --data=imagenet.zip on a busy virtual
# machine with two CPUs of an AMD EPYC. `input_pipeline.prepare --raw` makes a raw copy. Where a CPU
# is one of a core's two threads, it may do half of this while the other one works.
RATES = {"JPEG files": 480, "a raw copy": 1400}


def cpu_seconds(images: int) -> dict[str, float]:
    """CPU seconds for this many images, by storage format (the keys of `RATES`)."""
    return {name: images / rate for name, rate in RATES.items()}
