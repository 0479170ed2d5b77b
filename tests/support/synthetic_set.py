"""Shards of a synthetic set from images in memory."""

import numpy as np

from input_pipeline.synthetic.writer import SyntheticWriter


def write_shard(
    writer: SyntheticWriter, shard: int, images: np.ndarray, prompts: list[str]
) -> None:
    """Writes the images of `writer.plan.indices(shard)`, in this order."""
    writer.write_encoded(shard, zip(map(writer.encode, images), prompts, strict=True))
