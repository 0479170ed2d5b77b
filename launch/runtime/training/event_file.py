"""TensorBoard events, written by the thread that logs them.

tensorboardX's own writer uses a thread of its own. A full disk ends that thread, and training then
waits forever for room in its queue.
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

# Events reach the disk with the first one logged after this time.
_FLUSH_SECONDS = 30.0


class EventFile:
    """A new file of events, beside those of earlier attempts."""

    def __init__(self, folder: epath.Path, first_step: int):
        """Opens a file in a local folder; hides what older files say of `first_step` and later."""
        # The unique part separates two starts within the same second.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{uuid.uuid4().hex}"
        self._records = RecordWriter(os.path.join(folder, name))
        self._flushed = time.monotonic()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        # On a START, TensorBoard drops what it has read of this step and later ones.

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        entries = [summary.scalar(name, value).value[0] for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=entries)))

    def image(self, step: int, name: str, png: bytes) -> None:
        """Adds an RGBA picture as the bytes of a PNG file."""
        # A PNG is an 8-byte signature, then the chunk IHDR: length, name, width, height.
        width, height = struct.unpack(">2I", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        entry = Summary.Value(tag=name, image=image)
        self._add(Event(step=step, summary=Summary(value=[entry])))

    def flush(self) -> None:
        """Brings what was added to the disk."""
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
