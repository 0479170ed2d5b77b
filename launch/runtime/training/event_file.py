"""TensorBoard's events, written by the thread that logs them.

tensorboardX's own writer hands them to a thread. A full disk ends that thread, and training then
waits for ever for room in its queue.
"""

import os
import socket
import struct
import time
import uuid
from collections.abc import Mapping

from etils import epath
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

# What is written reaches the disk with the first event after so long.
_FLUSH_SECONDS = 30.0


class EventFile:
    """A new file of events in a folder."""

    def __init__(self, folder: epath.Path, first_step: int):
        """Opens it.

        Args:
            folder: a local one; older files in it stay.
            first_step: what older files say of it and of later steps is hidden.
        """
        # Two starts within a second have files of their own.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{uuid.uuid4().hex}"
        self._records = RecordWriter(os.path.join(folder, name))
        self._flushed = time.monotonic()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        entries = [summary.scalar(name, value).value[0] for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=entries)))

    def image(self, step: int, name: str, png: bytes) -> None:
        """Adds a picture, the bytes of a PNG file in RGBA."""
        width, height = struct.unpack(">2I", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        entry = Summary.Value(tag=name, image=image)
        self._add(Event(step=step, summary=Summary(value=[entry])))

    def flush(self) -> None:
        """Has what was added in the file, on the disk."""
        self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()
