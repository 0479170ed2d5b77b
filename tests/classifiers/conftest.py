import numpy as np
import pytest

from input_pipeline.sources.digits import DIGIT_NAMES
from input_pipeline.synthetic.writer import SyntheticWriter
from tests.support.synthetic_set import write_shard


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Sixty white images."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    writer = SyntheticWriter(folder, "white", DIGIT_NAMES, (8, 8, 1), [3] * 10, 2, 60, {})
    write_shard(writer, 0, np.full((60, 8, 8, 1), 255, np.uint8), [""] * 60)
    writer.finish()
    return dict(name="synthetic", path=str(folder))
