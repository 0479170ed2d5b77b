"""Files that are whole, and how they are held: against Pillow, on every form that is legal."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from input_pipeline import sources
from input_pipeline.records import image_file
from input_pipeline.sources.image_folder import decode
from launch.errors import InputError
from tests.support.image_folder import encoded, picture, write_folder

SMALL = encoded(picture(16, 16), "JPEG")


def segment(code, content):
    return bytes([0xFF, code]) + (len(content) + 2).to_bytes(2, "big") + content


def in_front(*segments):
    return SMALL[:2] + b"".join(segments) + SMALL[2:]


def filled(jpeg):
    """With three fill bytes before each marker but the first."""
    at, parts = 2, [jpeg[:2]]
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        parts.append(b"\xff" * 3 + jpeg[at:end])
        at = end
    return b"".join(parts) + b"\xff" * 3 + jpeg[at:-2] + b"\xff" * 3 + jpeg[-2:]


def multi_picture():
    file = io.BytesIO()
    first, second = (PIL.Image.fromarray(picture(16, 16, seed)) for seed in (0, 1))
    first.save(file, "MPO", save_all=True, append_images=[second])
    return file.getvalue()


def oriented(number, kind="JPEG"):
    exif = PIL.Image.Exif()
    exif[0x0112] = number
    return encoded(picture(16, 24), kind, exif=exif)


JPEGS = {
    "plain": SMALL,
    "fill bytes": filled(SMALL),
    "fill bytes between scans": filled(encoded(picture(16, 16), "JPEG", progressive=True)),
    "a segment of no content": in_front(segment(0xFE, b"")),
    "the longest segment": in_front(segment(0xEF, bytes(65533))),
    "markers in a comment": in_front(segment(0xFE, b"\xff\xd9\xff\xda\xff\xd8\xff")),
    "a preview": in_front(segment(0xE1, SMALL)),
    "restarts": encoded(picture(48, 48), "JPEG", restart_marker_blocks=1),
    "progressive": encoded(picture(16, 16), "JPEG", progressive=True),
    "progressive with restarts": encoded(
        picture(48, 48), "JPEG", progressive=True, restart_marker_blocks=2
    ),
    "grey": encoded(picture(16, 16)[..., 0], "JPEG"),
    "cmyk": encoded(PIL.Image.fromarray(picture(16, 16)).convert("CMYK"), "JPEG"),
    "noise": encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG"),
    "bytes behind the end": SMALL + b"\xff\xda\xff" * 9,
    "several pictures": multi_picture(),
    "with orientation": oriented(3),
}


@pytest.mark.parametrize("form", JPEGS)
def test_every_legal_jpeg_is_whole(form):
    theirs = PIL.Image.open(io.BytesIO(JPEGS[form])).convert("RGB")
    assert np.abs(decode(JPEGS[form]).astype(int) - np.array(theirs)).max() <= 4


@pytest.mark.parametrize(
    "form", ["plain", "fill bytes", "progressive", "a preview", "restarts", "with orientation"]
)
def test_every_part_of_a_jpeg_is_refused(form):
    wholes = [n for n in range(2, len(JPEGS[form])) if image_file.is_whole(JPEGS[form][:n])]
    assert not wholes
    with pytest.raises(InputError, match="bytes of a truncated image"):
        decode(JPEGS[form][:-1])


@pytest.mark.parametrize(
    ("kind", "options"), [("WEBP", dict(lossless=True)), ("BMP", {}), ("GIF", {})]
)
def test_parts_of_other_files_are_refused_in_one_line(kind, options, capfd):
    data = encoded(picture(16, 16), kind, **options)
    assert decode(data).shape == (16, 16, 3)
    for length in (4, 9, len(data) // 2, len(data) - 1):
        with pytest.raises(
            InputError, match=r"bytes of a truncated image|OpenCV cannot decode the"
        ):
            decode(data[:length])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_images_are_turned_as_pillow_does(kind, number):
    data = oriented(number, kind)
    image = PIL.Image.open(io.BytesIO(data))
    for upright, theirs in ((False, image), (True, PIL.ImageOps.exif_transpose(image))):
        ours = decode(data, upright)
        assert ours.shape == np.array(theirs).shape
        assert np.abs(ours.astype(int) - np.array(theirs)).max() <= 4
    assert (decode(data, True).shape == (24, 16, 3)) == (number > 4)


@pytest.mark.parametrize(
    ("names", "fields", "turned"),
    [
        (("ant", "n01440764"), {}, True),
        (("n01440764", "n01443537"), {}, False),
        (("n01440764", "n01443537"), dict(upright=True), True),
        (("ant", "bee"), dict(upright=False), False),
    ],
)
def test_which_images_are_turned(tmp_path, names, fields, turned):
    write_folder(tmp_path, {f"{name}/a.jpg": oriented(6) for name in names})
    spec = dict(name="image_folder", path=str(tmp_path), **fields)
    source = sources.load(spec)
    assert source[0]["image"].shape == ((24, 16, 3) if turned else (16, 24, 3))
    other = sources.load(dict(spec, upright=not turned))
    assert source.digest() == sources.load(dict(spec, upright=turned)).digest() != other.digest()
    with pytest.raises(InputError, match="upright must be True or False, got 'yes'"):
        sources.load(dict(spec, upright="yes"))
