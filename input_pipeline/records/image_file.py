"""Whether an image file is complete, from its structure and without decoding it."""

import re

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# JPEG's markers without a segment: TEM, SOI and RST0 to RST7. After all others comes a length.
_ALONE = frozenset((0x01, _SOI, *range(0xD0, 0xD8)))
# The end of a scan's data: a marker that is not a stuffed 0xFF (00), a restart (D0 to D7) or a fill
# byte (FF).
_SCAN_END = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
# The type and the checksum of PNG's last chunk.
_PNG_END = b"IEND\xaeB`\x82"


def is_whole(data: bytes) -> bool:
    """Whether a JPEG, PNG or WebP reaches its end, whatever follows; True for other formats."""
    if data.startswith(b"\x89PNG"):
        return _PNG_END in data
    if data.startswith(b"\xff\xd8"):
        return _is_whole_jpeg(data)
    if data.startswith(b"RIFF"):
        # RIFF: the size of everything after these 8 bytes.
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True


def _is_whole_jpeg(data: bytes) -> bool:
    """Walks from marker to marker to the end of the image (ITU-T T.81, 1992, Annex B)."""
    # A progressive image has several scans, and fill bytes may precede any marker.
    at, seen_scan = 0, False
    while marker := (_SCAN_END if seen_scan else _MARKER).search(data, at):
        at, code = marker.end(), data[marker.end() - 1]
        # An end before any scan is not the end of this image.
        if code == _EOI and seen_scan:
            return True
        if code in _ALONE or code == _EOI:
            continue
        seen_scan = seen_scan or code == _SOS
        # Skip the segment by its length: it may hold a preview, with an end of its own.
        at += int.from_bytes(data[at : at + 2], "big")
    return False
