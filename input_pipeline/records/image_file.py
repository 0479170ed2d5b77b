"""Whether the bytes of an image file are all there, told by its structure without decoding it."""

import re

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# JPEG's markers that stand alone: TEM and RST0 to RST7. What other ones begin says how long it is.
_ALONE = frozenset((0x01, _SOI, *range(0xD0, 0xD8)))
# Where a scan's data end: at a marker that is no stuffed 0xFF, no restart and no fill byte.
_SCAN_END = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_PNG_END = b"IEND\xaeB`\x82"


def is_whole(data: bytes) -> bool:
    """Whether a file reaches its end; True for formats that are not looked at.

    What follows the end does not count: there may be other pictures, or anything.

    Args:
        data: of a JPEG, PNG, WebP or any other file.
    """
    if data.startswith(b"\x89PNG"):
        return _PNG_END in data
    if data.startswith(b"\xff\xd8"):
        return _is_whole_jpeg(data)
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True


def _is_whole_jpeg(data: bytes) -> bool:
    """Walks from marker to marker, as ITU-T T.81 (1992, annex B) has them, to the end of the image.

    A marker may have any number of fill bytes before it; previews and other pictures lie in
    segments, whose lengths are stepped over; a progressive image has several scans.
    """
    at, seen_scan = 0, False
    while marker := (_SCAN_END if seen_scan else _MARKER).search(data, at):
        at, code = marker.end(), data[marker.end() - 1]
        if code == _EOI and seen_scan:
            return True
        if code in _ALONE or code == _EOI:
            continue
        seen_scan = seen_scan or code == _SOS
        at += int.from_bytes(data[at : at + 2], "big")
    return False
