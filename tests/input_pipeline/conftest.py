import pytest

from tests.input_pipeline.synthetic.tiny_set import write, writer


@pytest.fixture
def complete(tmp_path):
    folder = tmp_path / "set"
    opened = writer(folder)
    write(opened, opened.pending_shards())
    opened.finish()
    return folder
