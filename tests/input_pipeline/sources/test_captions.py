"""Texts of images in every kind of source that has them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline import sources
from input_pipeline.batches import loader
from input_pipeline.sources.digits import DIGIT_NAMES
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.errors import InputError
from tests.input_pipeline.sources import prepared_set
from tests.support.image_folder import encoded, picture
from tests.support.synthetic_set import write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def parquet(folder):
    columns = {
        "jpg": [encoded(picture(4, 4, seed=i)) for i in range(5)],
        "text": [f"text {i}" for i in range(4)] + [None],
    }
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet", row_group_size=2)
    return folder


def test_parquet(tmp_path):
    fields = dict(name="parquet", path=str(parquet(tmp_path / "a")), image="jpg", label="")
    source = sources.load(dict(fields, caption="text"))
    assert source.class_names == ("all",) and source.labels.tolist() == [0] * 5
    assert [source[i]["caption"] for i in (3, 0, 2)] == ["text 3", "text 0", "text 2"]
    np.testing.assert_array_equal(source[3]["image"], picture(4, 4, seed=3))
    assert "caption" not in sources.load(fields)[0]
    with pytest.raises(InputError, match="row 4 has no caption"):
        source[4]
    with pytest.raises(InputError, match="no column 'jpg' of texts"):
        sources.load(dict(fields, caption="jpg"))
    with pytest.raises(InputError, match="no column 'title' of texts"):
        sources.load(dict(fields, caption="title"))


def test_tfds(tmp_path):
    folder = prepared_set.write_set(tmp_path)
    source = sources.load(dict(name="tfds", path=str(folder), split="train", caption="file_name"))
    assert [source[i]["caption"] for i in (0, 14)] == ["train_0.png", "train_14.png"]
    with pytest.raises(InputError, match="label"):
        sources.load(dict(name="tfds", path=str(folder), split="train", caption="label"))


def test_synthetic_sets_and_who_reads_captions(tmp_path):
    writer = SyntheticWriter(tmp_path / "set", "x", DIGIT_NAMES, (8, 8, 1), [1] * 10, 1, 10, {})
    prompts = [f"prompt {n}" for n in writer.plan.indices(0)]
    write_shard(writer, 0, np.zeros((10, 8, 8, 1), np.uint8), prompts)
    writer.finish()
    spec = dict(name="synthetic", path=str(tmp_path / "set"))
    assert sources.load(dict(spec, caption="prompt"))[7]["caption"] == "prompt 7"
    assert sources.load(dict(spec, caption="class_name"))[7]["caption"] == "seven"
    assert "caption" not in sources.load(spec)[7]
    with pytest.raises(InputError, match=r"only classifiers\.train_clip reads captions"):
        batches = loader.batches(sources.load(dict(spec, caption="prompt")), 2, 0)
        next(iter(loader.iterate(batches, 0, 1)))
