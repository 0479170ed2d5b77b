"""What every extractor is: a network from images to features, spatial features and logits."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import UInt8

from input_pipeline.source import Transform
from launch.runtime.types import Array, Variables

# By name: features [b, d], spatial [b, h, w, d], logits [b, classes], and others.
Taps = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its weights, and the way a measure shows it images."""

    name: str
    rule: str  # how images are brought to its size and range
    digest: str  # checksum of its weights
    apply: Callable[[Variables, UInt8[Array, "b h w c"]], Taps]  # in float32; jitted by callers
    variables: Variables
    transform: Transform | None = None  # on the host; None: `apply` takes images of any one size
    class_names: tuple[str, ...] = ()  # of its logits; empty where unknown

    @property
    def made_from(self) -> dict[str, Any]:
        """What its outputs depend on, for JSON."""
        return {"name": self.name, "rule": self.rule, "digest": self.digest}
