"""What threads of the generator need is imported before they start: etils patches `__import__`."""

from unittest import mock

from imagen_ft.generation.stream import ShardStream
from input_pipeline.records import tf_example
from input_pipeline.synthetic.writer import SyntheticWriter


def test_messages_are_loaded_before_a_thread_writes():
    tf_example.load_messages.cache_clear()
    writer = mock.Mock(SyntheticWriter, config={"image_shape": (8, 8, 1)})
    with ShardStream(writer, [], []):
        assert tf_example.load_messages.cache_info().currsize == 1
