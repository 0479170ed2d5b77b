"""Labelled images as files, `class/file.jpg`, in a folder or in a zip."""

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

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # compared in lower case
_WINDOWS = 0  # `create_system` of MS-DOS and Windows in a zip
# ImageNet's validation images come without folders. Kaggle's table has a header and a line per
# image: ILSVRC2012_val_00000001,n01751748 321 87 ...
_SORT = (
    "sort them into one folder per class, such as ImageNet's by Kaggle's table: cd there, then "
    "tail -n +2 LOC_val_solution.csv | tr ',' ' ' | while read f c x; do mkdir -p $c; mv $f.JPEG "
    "$c; done"
)
_UNPACK = (
    "unpack each class's tar into a folder of its own: cd there, then "
    "for f in *.tar; do mkdir ${f%.tar} && tar -xf $f -C ${f%.tar}; done"
)
# In a zip, before each member's data: signature, ..., lengths of its name and of its extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@runtime_checkable
class _Files(Protocol):
    """Where the images are: in a folder or in a zip."""

    location: str  # of the folder that holds the classes, for messages
    names: list[str]  # `class/file` of each image, sorted by class, then by file
    class_names: tuple[str, ...]  # sorted

    def read(self, i: int) -> bytes:
        """The bytes of image i."""

    def digest(self) -> str:
        """A checksum of what is known without reading an image."""


class ImageFolder:
    """Images with random access; their labels are known without reading one.

    Each class is a folder, its label the position of its name in sorted order (for WordNet ids that
    is ImageNet's order). Every file in it must be an image; files beside the class folders and
    names that start with a dot are ignored. Only names are held, no open file: it can be pickled
    and shared by threads.
    """

    def __init__(self, path: epath.PathLike, root: str = "", upright: Any = None):
        """Lists the images of a mounted folder or a zip.

        `root` is the folder in it that holds the classes; '' in a zip finds it, if it is the only
        one. `upright` turns images as their EXIF orientation says, which photographs of phones
        need; None does so unless the classes are ImageNet's, where others ignore it too.

        Raises:
            InputError: there is no such folder or zip, it is damaged, a class has no image, or a
                file in a class is not named like an image.
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
        """Example i in RGB, at its own size; InputError names a file that is missing or damaged."""
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
        """Covers the names, in a zip also sizes and checksums, and whether images are turned."""
        return decoded_digest(self._files.digest(), self._upright)


def decode(data: bytes, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a file to values in [0, 255], as the usual training on ImageNet does.

    PNG, JPEG or any format that OpenCV reads. Transparency is dropped; grey, palette and CMYK
    become RGB; the upper 8 of 16 bits are kept. For `upright` see `image_codec.decode_image`.
    Raises InputError if the bytes are not a complete image.
    """
    # OpenCV 5 rejects a truncated file without saying why; older versions may not reject it.
    if not image_file.is_whole(data):
        raise InputError(f"{len(data)} bytes of a truncated image; download it again")
    try:
        return image_codec.decode_image(data, channels=3, upright=upright)
    except cv2.error as error:
        raise InputError(f"OpenCV cannot decode it ({error.err}); convert it") from None


def decoded_digest(digest: str, upright: bool) -> str:
    """A source's checksum from that of its files, and from whether its images are turned."""
    return hashlib.sha256(f"{digest} upright".encode()).hexdigest() if upright else digest


class _Folder:
    def __init__(self, path: str, root: str):
        self.location = os.path.join(path, root) if root else path
        if not os.path.isdir(self.location):
            raise InputError(f"{self.location} does not exist; check path and root")
        listing = {name: _files_in(f"{self.location}/{name}") for name in _classes(self.location)}
        self.class_names, self.names = _arrange(self.location, listing)

    def read(self, i: int) -> bytes:
        with _opened(f"{self.location}/{self.names[i]}") as fd:
            return os.pread(fd, os.fstat(fd).st_size, 0)

    def digest(self) -> str:
        return _digest(self.names)


class _Zip:
    """Images in a zip. The central directory is read once; then each image by its offset."""

    def __init__(self, path: str, root: str):
        self._path = path
        try:
            # 1. All members, under clean names.
            with zipfile.ZipFile(path) as archive:
                members = {_slashed(member): member for member in archive.infolist()}
        except (zipfile.BadZipFile, EOFError, OSError):
            raise InputError(f"{path}: {_advice(path)}") from None
        # 2. The folder with the classes, and the files of each.
        root = root.strip("/") or _only_root(path, members)
        self.location = f"{path}/{root}" if root else path
        prefix = f"{root}/" if root else ""
        listing: dict[str, list[str]] = {}
        for member in members:
            folder, below, file = member.removeprefix(prefix).partition("/")
            if member.startswith(prefix) and below and not _is_hidden(folder):
                # A member "class/" without a file is an empty folder: it is listed, and reported
                # later.
                listing.setdefault(folder, []).extend([file] if file else [])
        self.class_names, self.names = _arrange(self.location, listing)
        # 3. An array and not a list of ZipInfo: a million images then take 40 MB and pickle fast.
        # [n, 5]: offset of the local header, method, compressed size, size, checksum.
        rows = [self._row(members[prefix + name]) for name in self.names]
        self.index: Int64[np.ndarray, "n 5"] = np.array(rows, np.int64)

    def _row(self, member: zipfile.ZipInfo) -> tuple[int, ...]:
        if member.flag_bits & 1 or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise InputError(
                f"{self._path}: {member.filename} is encrypted or uses an unsupported compression; "
                "write the zip again (stored or deflated)"
            )
        sizes = member.compress_size, member.file_size
        return member.header_offset, member.compress_type, *sizes, member.CRC

    def read(self, i: int) -> bytes:
        start, method, packed_size, size, crc = self.index[i].tolist()
        with _opened(self._path) as fd:
            header = os.pread(fd, _LOCAL_HEADER.size, start)
            # The name and the extra field before the data may be longer here than in the central
            # directory.
            if len(header) == _LOCAL_HEADER.size and header.startswith(b"PK\x03\x04"):
                start += _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[1:])
            data = os.pread(fd, packed_size, start)
        # Damage shows in the checksum; size + 1 stops a member that unpacks to more than it says.
        with contextlib.suppress(zlib.error):
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if len(data) != size or zlib.crc32(data) != crc:
            raise InputError(
                f"{self.location}/{self.names[i]} is damaged (wrong checksum); download "
                "the zip again"
            )
        return data

    def digest(self) -> str:
        # Columns 3 and 4: size and checksum.
        return _digest(self.names, self.index[:, 3:].astype("<i8").tobytes())


def _slashed(member: zipfile.ZipInfo) -> str:
    """A member's clean name: some Windows tools write backslashes, others write `./`."""
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
        # "PK" starts every zip.
        beginning = file.read(2)
    if beginning in (b"", b"PK"):
        return "not a zip, or a truncated one; download it again"
    return "neither a folder nor a zip; unpack it if it is another archive, and use that folder"


def _tar_advice(path: str) -> str:
    """What to do with a tar, which has no random access; '' if the file is not a tar."""
    try:
        with tarfile.open(path, "r:*") as archive:
            first = next((member.name for member in archive if member.isfile()), "")
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return ""
    folder = os.path.splitext(os.path.basename(path))[0]
    target = shlex.quote(folder)
    unpack = f"mkdir {target} && tar -xf {shlex.quote(path)} -C {target}"
    if first.endswith(".tar"):
        return f"a tar of tars, one per class; {unpack}, then {_UNPACK}"
    if "/" not in first.removeprefix("./"):
        return f"a tar of images without classes; {unpack}, then {_SORT}"
    return f"a tar, which has no random access; {unpack}, and use that folder"


def _only_root(path: str, members: Iterable[str]) -> str:
    """The folder that holds the classes, if there is only one."""
    images = (member for member in members if member.lower().endswith(SUFFIXES))
    shown = (image for image in images if not any(map(_is_hidden, image.split("/"))))
    levels = (image.rsplit("/", 2) for image in shown)  # root, class, file
    roots = sorted({"".join(names[:-2]) for names in levels if len(names) > 1})
    if not roots:
        raise InputError(
            f"{path} has no class/file{' or class/file'.join(SUFFIXES)}; choose a folder that has "
            "them"
        )
    if len(roots) > 1:
        first = repr(roots[0]) if roots[0] else "its top"
        raise InputError(
            f"{path} has classes in {first} and in {roots[1]!r}; choose one of them as root"
        )
    return roots[0]


def _is_hidden(name: str) -> bool:
    # macOS adds __MACOSX to zips; Windows adds the other two to folders.
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _arrange(location: str, listing: dict[str, list[str]]) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and `class/file` of each image; InputError for an empty class or other files."""
    # 1. No class folder: say what the location holds instead.
    if not listing:
        names = os.listdir(location) if os.path.isdir(location) else []
        if any(name.lower().endswith(SUFFIXES) for name in names):
            raise InputError(f"{location} has images, but no folders of classes; {_SORT}")
        if any(name.endswith(".tar") for name in names):
            raise InputError(f"{location} has tars, but no folders of images; {_UNPACK}")
        raise InputError(f"{location} has no folders of images; choose one that has")
    # 2. Class names go into JSON and text files, which need UTF-8.
    if unreadable := [name for name in listing if not files.is_utf8(name)]:
        raise InputError(
            f"{location}: the name of folder {unreadable[0]!a} is not UTF-8; rename it"
        )
    names = []
    # 3. Every file in a class must be an image.
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
    with os.scandir(location) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
        for entry in shown:
            # It may have been a class: without it all later labels would be off by one.
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(f"{entry.path} is a broken link; fix or remove it")
        return [entry.name for entry in shown if entry.is_dir()]


def _files_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
        for entry in shown:
            # No stat: the listing of the folder has the types, and millions of calls would take
            # minutes on a network disk.
            if not (entry.is_symlink() or entry.is_file() or entry.is_dir()):
                raise InputError(f"{entry.path} is a pipe or a device, not a file; remove it")
        return [entry.name for entry in shown]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        # A link may lead to a pipe, and opening that would wait for a writer.
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
