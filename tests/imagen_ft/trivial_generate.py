"""imagen_ft.generate with images that follow from their index: no network, nothing is compiled.

python -m tests.imagen_ft.trivial_generate --counts=FILE --workdir=DIR [--seconds=0.01 a batch] ...
"""

import dataclasses
import sys
import tempfile
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
from ml_collections import ConfigDict

from imagen_ft import generate
from imagen_ft.cascade import Cascade
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.stage import Stage
from imagen_ft.generation import worker
from launch.runtime import app

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        name="trivial", class_names={names!r}, counts={counts!r}, copies={copies},
        images_per_shard={per_shard}, batch_size={batch_size}, seed=0, stages=dict(),
        encoding=dict(size={stored}, format="png"),
    ))
"""


def images_of(seed, indices, size):
    """Noise that is a function of seed and index."""
    pixels = np.arange(size * size * 3, dtype=np.uint64)
    z = np.asarray(indices, np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15) + pixels
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(seed)
    return (z >> np.uint64(56)).astype(np.uint8).reshape(-1, size, size, 3)


@dataclasses.dataclass(frozen=True)
class Trivial(Cascade):
    """A cascade that draws noise, a batch in so many seconds."""

    size: int = 8
    seconds: float = 0.0

    @classmethod
    def of(cls, class_names, batch_size, size=8, seconds=0.0):
        denoiser = mock.Mock(Denoiser, size=size, image_size=size, channels=3, image_channels=3)
        stage = mock.Mock(Stage, denoiser=denoiser, image_size=size, batch_size=0)
        encoder = SimpleNamespace(digest="")
        digests = ("0" * 64,)
        stages, variables, config = (stage,), ({},), ConfigDict()
        fields = dict(batch_size=batch_size, size=size, seconds=seconds)
        return cls(stages, variables, encoder, class_names, digests, config, **fields)

    def stream(self, request):
        assert len(request.labels) == len(request.indices)
        for first in range(0, len(request), self.batch_size):
            time.sleep(self.seconds)
            indices = request.indices[first : first + self.batch_size]
            yield [images_of(request.seed, indices, self.size)]


def main(
    counts, names, *flags, copies=2, per_shard=20, batch_size=32, stored=0, size=8, seconds=0.0
):
    """Runs the command."""
    text = CONFIG.format(
        names=tuple(names),
        counts=counts,
        copies=copies,
        per_shard=per_shard,
        batch_size=batch_size,
        stored=stored,
    )

    def load(config, mesh):
        return Trivial.of(tuple(names), config.batch_size, size, seconds)

    with (
        mock.patch.object(generate, "load_cascade", load),
        # git takes longer than all the rest
        mock.patch.object(worker, "code_version", lambda: "trivial"),
        tempfile.NamedTemporaryFile("w", suffix=".py") as file,
    ):
        file.write(text)
        file.flush()
        argv = ["generate", f"--config={file.name}", *flags]
        app.run(generate.main, generate.__doc__, generate.define_flags, argv)


if __name__ == "__main__":
    import json

    options = json.loads(sys.argv[1])
    main(options.pop("counts"), options.pop("names"), *sys.argv[2:], **options)
