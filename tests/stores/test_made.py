"""What is made from runs, at gs://: synthetic sets, text caches, imports; and who refuses it."""

import numpy as np
import pytest

from imagen_ft import weights
from imagen_ft.text.cache import TextCache
from imagen_ft.weights.__main__ import main as import_weights
from input_pipeline.synthetic.__main__ import main as export
from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.verify import verify
from launch.errors import InputError
from launch.folders import file_names
from launch.runtime import app
from tests.imagen_ft.text import test_cache
from tests.imagen_ft.weights.tiny_weights import write_pipeline
from tests.input_pipeline.synthetic.tiny_set import IMAGES, contents, write, writer
from tests.support.tiny_runs import DIFFUSION


def test_a_set_of_two_workers(store, bucket, tmp_path):
    first, second = writer(bucket / "set"), writer(bucket / "set")
    write(first, first.pending_shards(0, 2))
    assert first.pending_shards() == [1, 2]
    # What the first has looked at before is there now.
    write(second, second.pending_shards(1, 2))
    assert first.pending_shards() == []
    first.finish()
    complete = writer(tmp_path / "set")
    write(complete, complete.pending_shards())
    complete.finish()
    assert file_names(bucket / "set") == sorted(contents(tmp_path / "set"))
    for name, data in contents(tmp_path / "set").items():
        assert (bucket / "set" / name).read_bytes() == data, name
    source = SyntheticSource(bucket / "set")
    np.testing.assert_array_equal([source[i]["image"] for i in range(len(source))], IMAGES)
    assert verify(bucket / "set").ok


def test_a_damaged_shard(store, bucket):
    write(writer(bucket), range(3))
    name = next(name for name in store.names(bucket.parts[-1]) if "00001-of" in name)
    data = bytearray(store.objects[bucket.parts[-1], name][0])
    data[30] ^= 1
    store.put(bucket.parts[-1], name, data)
    again = writer(bucket, repair=True)
    assert again.pending_shards() == [1]
    write(again, [1])
    again.finish()
    assert verify(bucket).ok


def test_texts(store, bucket):
    states = test_cache.make(bucket / "cache")
    cache = TextCache(bucket / "cache")
    np.testing.assert_array_equal(cache.read(test_cache.PROMPTS), states)
    cache.append(["new"], states[:1])
    assert len(TextCache(bucket / "cache")) == 5


@pytest.mark.slow
def test_an_import(store, bucket, tmp_path):
    pipeline = write_pipeline(tmp_path / "pipeline")
    command = ["weights", f"--from=deepfloyd:{pipeline}"]
    import_weights([*command, f"--to={bucket}/imported"])
    import_weights([*command, f"--to={tmp_path}/imported"])
    for part in ("unet", "text_encoder"):
        ours = weights.digest(bucket / "imported", part)
        assert ours == weights.digest(tmp_path / "imported", part)
    _, params = weights.load_unet(bucket / "imported")
    _, expected = weights.load_unet(tmp_path / "imported")
    np.testing.assert_array_equal(*[p["conv_in"]["kernel"] for p in (params, expected)])
    assert not [name for name in file_names(bucket) if name.rpartition("/")[2].startswith(".")]
    with pytest.raises(InputError, match=r"--to must be an empty folder, got gs://.*imported"):
        import_weights([*command, f"--to={bucket}/imported", "--part=unet"])


def test_an_export(store, bucket, tmp_path):
    made = writer(bucket / "set")
    write(made, range(3))
    made.finish()
    export(["export", f"--set={bucket}/set", "--export=folder", f"--to={tmp_path}"])
    assert len(list(tmp_path.glob("*/*.png"))) == len(IMAGES)


def test_stores_of_other_makers():
    with pytest.raises(InputError, match="begin with gs://"):
        app.parse(["task", f"--config={DIFFUSION.config}", "--workdir=s3://bucket/run"])
