"""TensorBoard's event files, read as TensorBoard reads them."""

import struct
from pathlib import Path

from tensorboardX.proto import event_pb2


def shown_steps(directory: Path, tag: str) -> list[int]:
    """The steps of a figure in a run's directory; where a run began again, what came at that step or later is forgotten."""
    shown = []
    for path in sorted((directory / "tensorboard").glob("events*")):
        content, start = path.read_bytes(), 0
        while start + 12 <= len(content):  # a length with its checksum, an event with its own
            (size,) = struct.unpack_from("<Q", content, start)
            if (end := start + 12 + size) + 4 > len(content):
                break  # cut short by a kill
            event = event_pb2.Event.FromString(content[start + 12 : end])
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = [step for step in shown if step < event.step]
            shown += [event.step for value in event.summary.value if value.tag == tag]
            start = end + 4
    return shown
