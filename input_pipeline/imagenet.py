"""What ImageNet's 1,000 classes are called on disk."""

from importlib import resources


def wordnet_ids() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 folders, in the order of the labels, which is the sorted one."""
    text = (resources.files("input_pipeline") / "data" / "imagenet_wnids.txt").read_text()
    return tuple(text.splitlines())
