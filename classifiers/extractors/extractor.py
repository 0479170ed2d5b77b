"""What every extractor has: from images to features, spatial features and logits."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import UInt8

from input_pipeline.source import Transform
from launch.runtime.types import Array, Variables

# By name: features [b, d], spatial [b, h, w, d], logits [b, classes], and what else there is.
Taps = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its weights, as a measure looks at images with it.

    Attributes:
        name: of the network.
        rule: by which images are brought to its size and range.
        digest: of its weights.
        apply: from variables and images to `Taps` in float32; to be jitted.
        variables: of the network.
        transform: what happens to an image before, on the host; None is nothing, and `apply` takes
            images of any one size.
        class_names: of its logits; empty where they are not known.
    """

    name: str
    rule: str
    digest: str
    apply: Callable[[Variables, UInt8[Array, "b h w c"]], Taps]
    variables: Variables
    transform: Transform | None = None
    class_names: tuple[str, ...] = ()

    @property
    def made_from(self) -> dict[str, Any]:
        """What its outputs depend on, for JSON."""
        return {"name": self.name, "rule": self.rule, "digest": self.digest}
