"""Labelled images as files: `class/file.jpg` in a folder, or in a zip of one."""

import contextlib
import hashlib
import operator
import os
import shlex
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import cv2
import numpy as np
from etils import epath
from jaxtyping import Int64, UInt8

from input_pipeline import imagenet
from input_pipeline.records import image_codec, image_file
from input_pipeline.source import Example
from launch import files
from launch.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # in capital letters as well
_WINDOWS = 0  # what `create_system` says of MS-DOS and its children
# ImageNet's validation images come without folders; Kaggle's table has a line an image, behind a
# head: ILSVRC2012_val_00000001,n01751748 321 87 ...
_SORT = (
    "sort them into a folder a class, such as ImageNet's by Kaggle's table: cd there, then "
    "tail -n +2 LOC_val_solution.csv | tr ',' ' ' | while read f c x; do mkdir -p $c; "
    "mv $f.JPEG $c; done"
)
_UNPACK = (
    "unpack each class's tar into a folder of its own: cd there, then "
    "for f in *.tar; do mkdir ${f%.tar} && tar -xf $f -C ${f%.tar}; done"
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, length of name and extra


@runtime_checkable
class _Files(Protocol):
    """Where the images are.

    Attributes:
        location: of the folder that holds the classes, for messages.
        names: `class/file` of each image, sorted by class, then by file.
        class_names: sorted.
    """

    location: str
    names: list[str]
    class_names: tuple[str, ...]

    def read(self, i: int) -> bytes:
        """The bytes of image i."""

    def digest(self) -> str:
        """Of what is known without reading an image."""


class ImageFolder:
    """Images with random access; their labels are known without reading one.

    A class is a folder, its label the position of its name in sorted order (for WordNet ids that is
    ImageNet's order). Every file in it is an image; what lies beside the classes, and what has a
    name that begins with a dot, is not looked at. Only names are held, no open file: it can be
    pickled, and used by several threads.
    """

    def __init__(self, path: epath.PathLike, root: str = "", upright: Any = None):
        """Lists the images.

        Args:
            path: a mounted folder, or a zip.
            root: the folder in it that holds the classes. In a zip '' is the only one that does.
            upright: turns images as their EXIF orientation says, which photographs of phones need.
                None does so unless the classes are ImageNet's, on which others ignore it.

        Raises:
            InputError: there is no such folder or zip or it is damaged, a class has no image, or a
                file in a class is no image by its name.
        """
        path = os.fspath(path)
        if not files.is_local(path):
            raise InputError(f"{path}: images need a mounted folder; mount or copy it")
        self._files: _Files = _Zip(path, root) if os.path.isfile(path) else _Folder(path, root)
        self.class_names = self._files.class_names
        number = {name: label for label, name in enumerate(self.class_names)}
        labels = [number[name.partition("/")[0]] for name in self._files.names]
        self.labels = np.array(labels, np.int32)
        self.domain = np.zeros(len(labels), np.int32)
        self._upright = imagenet.upright(upright, self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i: RGB, each image of its own size.

        Raises:
            InputError: the file is missing, damaged, cut short or no image; it is named.
        """
        data = self._files.read(operator.index(i))
        try:
            image = decode(data, self._upright)
        except InputError as error:
            raise InputError(f"{self._files.location}/{self._files.names[i]}: {error}") from None
        return {"image": image, "label": self.labels[i], "domain": self.domain[i]}

    def key(self, i: int) -> str:
        """`class/file` of image i."""
        return self._files.names[i]

    def digest(self) -> str:
        """Of the names of all images, and in a zip of their sizes and checksums; and if turned."""
        return decoded_digest(self._files.digest(), self._upright)


def decode(data: bytes, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a file as the usual training on ImageNet does.

    Opacity is dropped. Grey, palette and CMYK become RGB; of 16 bits the upper 8 are kept.

    Args:
        data: PNG, JPEG or any format that OpenCV reads.
        upright: see `image_codec.decode_image`.

    Returns:
        Values [0, 255].

    Raises:
        InputError: the bytes are no image, or a part of one.
    """
    # OpenCV 5 refuses a part without saying why; that older ones refuse is not relied on.
    if not image_file.is_whole(data):
        raise InputError(
            f"{len(data)} bytes that are only the beginning of an image; download it again"
        )
    try:
        return image_codec.decode_image(data, channels=3, upright=upright)
    except cv2.error as error:
        raise InputError(f"OpenCV cannot decode it ({error.err}); convert it") from None


def decoded_digest(digest: str, upright: bool) -> str:
    """The digest of a source: that of its files, and whether their images are turned."""
    return hashlib.sha256(f"{digest} upright".encode()).hexdigest() if upright else digest


class _Folder:
    """Images in a folder."""

    def __init__(self, path: str, root: str):
        self.location = os.path.join(path, root) if root else path
        if not os.path.isdir(self.location):
            raise InputError(
                f"{self.location} must be a folder or a zip, got nothing there; check path and root"
            )
        listing = {name: _files_in(f"{self.location}/{name}") for name in _classes(self.location)}
        self.class_names, self.names = _arrange(self.location, listing)

    def read(self, i: int) -> bytes:
        with _opened(f"{self.location}/{self.names[i]}") as fd:
            return os.pread(fd, os.fstat(fd).st_size, 0)

    def digest(self) -> str:
        return _digest(self.names)


class _Zip:
    """Images in a zip; its list is read once, an image by its offset alone."""

    def __init__(self, path: str, root: str):
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = {_slashed(member): member for member in archive.infolist()}
        except (zipfile.BadZipFile, EOFError, OSError):
            raise InputError(f"{path}: {_advice(path)}") from None
        root = root.strip("/") or _only_root(path, members)
        self.location = f"{path}/{root}" if root else path
        prefix = f"{root}/" if root else ""
        listing: dict[str, list[str]] = {}
        for member in members:
            folder, below, file = member.removeprefix(prefix).partition("/")
            if member.startswith(prefix) and below and not _is_hidden(folder):
                listing.setdefault(folder, []).extend([file] if file else [])
        self.class_names, self.names = _arrange(self.location, listing)
        # Columns: where its header is, method, size in the zip, size, checksum.
        rows = [self._row(members[prefix + name]) for name in self.names]
        self.index: Int64[np.ndarray, "n 5"] = np.array(rows, np.int64)

    def _row(self, member: zipfile.ZipInfo) -> tuple[int, ...]:
        if member.flag_bits & 1 or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise InputError(
                f"{self._path}: {member.filename} is encrypted, or neither stored nor deflated; "
                "write the zip again"
            )
        sizes = member.compress_size, member.file_size
        return member.header_offset, member.compress_type, *sizes, member.CRC

    def read(self, i: int) -> bytes:
        start, method, packed_size, size, crc = self.index[i].tolist()
        with _opened(self._path) as fd:
            header = os.pread(fd, _LOCAL_HEADER.size, start)
            if len(header) == _LOCAL_HEADER.size and header.startswith(b"PK\x03\x04"):
                start += _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[1:])
            data = os.pread(fd, packed_size, start)
        with contextlib.suppress(zlib.error):  # The checksum tells it.
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if len(data) != size or zlib.crc32(data) != crc:
            raise InputError(
                f"{self.location}/{self.names[i]} is damaged (wrong checksum); download "
                "the zip again"
            )
        return data

    def digest(self) -> str:
        return _digest(self.names, self.index[:, 3:].astype("<i8").tobytes())


def _slashed(member: zipfile.ZipInfo) -> str:
    """A member's name as it should be: some tools of Windows write backslashes, others `./`."""
    name = member.filename
    if member.create_system == _WINDOWS:
        name = name.replace("\\", "/")
    folders, _, file = name.rpartition("/")
    kept = [folder for folder in folders.split("/") if folder not in ("", ".")]
    return "/".join([*kept, file])


def _advice(path: str) -> str:
    """What to do with a file that cannot be read as a zip."""
    if advice := _tar_advice(path):
        return advice
    with open(path, "rb") as file:
        beginning = file.read(2)
    if beginning in (b"", b"PK"):
        return "not a zip, or a truncated one; download it again"
    return "neither a folder nor a zip; unpack it if it is another archive, and name that folder"


def _tar_advice(path: str) -> str:
    """What to do with a tar, which cannot be read at random; empty for what is none."""
    try:
        with tarfile.open(path, "r:*") as archive:
            first = next((member.name for member in archive if member.isfile()), "")
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return ""
    folder = os.path.splitext(os.path.basename(path))[0]
    target = shlex.quote(folder)
    unpack = f"mkdir {target} && tar -xf {shlex.quote(path)} -C {target}"
    if first.endswith(".tar"):
        return f"a tar of tars, one a class; {unpack}, then {_UNPACK}"
    if "/" not in first.removeprefix("./"):
        return f"a tar of images without classes; {unpack}, then {_SORT}"
    return f"a tar, which has no random access; {unpack}, and name that folder"


def _only_root(path: str, members: Iterable[str]) -> str:
    """The folder that holds the classes, if every image is in a class of the same one."""
    images = (member for member in members if member.lower().endswith(SUFFIXES))
    shown = (image for image in images if not any(map(_is_hidden, image.split("/"))))
    levels = (image.rsplit("/", 2) for image in shown)  # root, class, file
    roots = sorted({"".join(names[:-2]) for names in levels if len(names) > 1})
    if not roots:
        raise InputError(
            f"{path} has no class/file{' or class/file'.join(SUFFIXES)}; name a folder that has"
        )
    if len(roots) > 1:
        first = repr(roots[0]) if roots[0] else "its top"
        raise InputError(
            f"{path} has classes in {first} and in {roots[1]!r}; choose one of them as root"
        )
    return roots[0]


def _is_hidden(name: str) -> bool:
    """Also what macOS puts into a zip and Windows into folders, for itself."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _arrange(location: str, listing: dict[str, list[str]]) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and `class/file` of every image.

    Raises:
        InputError: there is no class, one has no image, or something in it is none.
    """
    if not listing:
        names = os.listdir(location) if os.path.isdir(location) else []
        if any(name.lower().endswith(SUFFIXES) for name in names):
            raise InputError(f"{location} has images, but no folders of classes; {_SORT}")
        if any(name.endswith(".tar") for name in names):
            raise InputError(f"{location} has tars, but no folders of images; {_UNPACK}")
        raise InputError(f"{location} has no folders of images; name one that has")
    if unreadable := [name for name in listing if not files.is_utf8(name)]:
        raise InputError(
            f"{location}: the name of folder {unreadable[0]!a} is not UTF-8; rename it"
        )
    names = []
    for folder in sorted(listing):
        images = sorted(name for name in listing[folder] if not _is_hidden(name))
        for name in images:
            if "/" in name or not name.lower().endswith(SUFFIXES):
                raise InputError(
                    f"{location}/{folder}/{name} must be a file {', '.join(SUFFIXES)}; "
                    "convert it, remove it, or choose another root"
                )
        if not images:
            raise InputError(f"{location}/{folder} has no image; add some or remove it")
        names += [f"{folder}/{name}" for name in images]
    return tuple(sorted(listing)), names


def _classes(location: str) -> list[str]:
    """Names of the folders in a folder; a link that leads nowhere may have been one."""
    with os.scandir(location) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
        for entry in shown:
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(f"{entry.path} is a broken link; fix or remove it")
        return [entry.name for entry in shown if entry.is_dir()]


def _files_in(folder: str) -> list[str]:
    """Names in a folder. What the folder itself says of them is enough: millions are not asked."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
        for entry in shown:
            if not (entry.is_symlink() or entry.is_file() or entry.is_dir()):
                raise InputError(f"{entry.path} is a pipe or a device, not a file; remove it")
        return [entry.name for entry in shown]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        # Opening a pipe, to which a link may lead, would wait for who writes into it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InputError(f"{path} is not a file; remove it")
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); restore it") from None


def _digest(names: Sequence[str], content: bytes = b"") -> str:
    return hashlib.sha256(os.fsencode("\n".join(names)) + b"\0" + content).hexdigest()
