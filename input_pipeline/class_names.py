"""Lists of class names, and prompts, from files; ImageNet's are built in."""

import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from etils import epath

from input_pipeline.imagenet import canonical_names, wordnet_ids
from launch.errors import InputError
from launch.files import is_utf8
from launch.runtime.optional_fields import Mixed

IMAGENET = "imagenet"
# What a config may have as `class_names`, see `resolve`.
MIXED = Mixed((), (tuple, str))
# A WordNet id and its words, as in Kaggle's LOC_synset_mapping.txt: "n01440764 tench, Tinca tinca".
_SYNSET = re.compile(r"n\d{8}[\s,]+\S")


def load(name_or_path: epath.PathLike, expected: int | None = None) -> tuple[str, ...]:
    """Reads class names in the order of their labels.

    'imagenet' stands for the 1,000 names of CLIP's prompts, in the order of the WordNet ids
    (Radford et al. 2021; openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb). Another
    argument is a text file with one name a line, or a `.json` file with a list or an object by
    number, {"0": "tench", ...}. With `expected` there must be that many names.

    Raises:
        InputError: the file is missing, is neither text nor JSON, has another number of names, or
            has a blank name or the same one twice; the message names the line.
    """
    if name_or_path == IMAGENET:
        # As published, and not checked: 'missile' is there twice (labels 657 and 744), and so is
        # 'sunglasses' (836 and 837).
        names = _built_in("imagenet_class_names.txt")
        named = [(f"{IMAGENET}:{i}", name) for i, name in enumerate(names, start=1)]
    else:
        named = list(read_lines(name_or_path))
        _check_names(named)
    if expected is not None and len(named) != expected:
        raise InputError(
            f"{name_or_path} must have {expected} names, one per class, got {len(named)}"
        )
    return tuple(name for _, name in named)


def resolve(
    named: str | Sequence[str],
    image_names: Sequence[str] | None = None,
    source_field: str = "config.train_source",
) -> tuple[str, ...]:
    """The class names of a config, compared with those of its images.

    `named` is `config.class_names`: a list of names, an argument of `load`, or '' or () for the
    names that the images have. `image_names` is None where the images are not at hand; then nothing
    is compared, and '' gives no names. Raises InputError at the first class that differs.
    """
    # 1. Nothing to compare, or the same names.
    if not named:
        return tuple(image_names or ())
    names = load(named) if isinstance(named, str) else tuple(named)
    if image_names is None or tuple(image_names) in (names, canonical_names(names)):
        return names
    # 2. With 'imagenet' the images may also be named by WordNet id, as ImageNet's folders are. Show
    # the mismatch in the kind of name that more of the images have.
    expected = names
    ids = wordnet_ids()
    if named == IMAGENET and len({*names} & {*image_names}) <= len({*ids} & {*image_names}):
        expected = ids
    # 3. Name the first class that differs, also where one list is shorter.
    for label, (name, image_name) in enumerate(itertools.zip_longest(expected, image_names)):
        if name != image_name:
            raise InputError(
                f"config.class_names: class {label} must be {_quoted(image_name, 'left out')}, as "
                f"in the images of {source_field}, got {_quoted(name, 'no class')}; make them the "
                "same"
            )
    return names


def _quoted(name: str | None, nothing: str) -> str:
    return nothing if name is None else repr(name)


def _built_in(file: str) -> tuple[str, ...]:
    text = (resources.files("input_pipeline") / "data" / file).read_text()
    return tuple(text.splitlines())


def _check_names(named: list[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for location, name in named:
        if not name:
            raise InputError(f"{location} must be a class name, got a blank line; fix the list")
        # Such a list would make the id part of the prompt.
        if _SYNSET.match(name):
            raise InputError(
                f"{location}: {name!r} is a WordNet id with its words; use 'imagenet' if these are "
                "ImageNet's 1,000 classes, else write only the ids or only the words"
            )
        if name in seen:
            raise InputError(
                f"{location}: {name!r} is already at {seen[name]}; give every class a name of its "
                "own"
            )
        seen[name] = location


def read_lines(path: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Yields (location, text) of each line of a text file, or of each string of a `.json` file.

    The JSON may be a list or an object by number. `location` is for messages; the text has no white
    space around it. Raises InputError if the file cannot be read as what its name says, or is
    empty.
    """
    path = epath.Path(path)
    try:
        # Windows editors put a byte-order mark first, which utf-8-sig removes.
        text = path.read_bytes().decode("utf-8-sig")
    except OSError:
        raise InputError(f"{path} cannot be read; use a file with one entry per line") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{number} is not UTF-8; save the file as UTF-8") from None
    if path.suffix == ".json":
        entries = [(f"{path}, item {i}", line) for i, line in _json_list(path, text)]
    else:
        # newline=None: the line ends of Windows and old Macs count as well.
        lines = enumerate(io.StringIO(text, newline=None), start=1)
        entries = [(f"{path}:{i}", line) for i, line in lines]
    if not entries:
        raise InputError(f"{path} is empty; write one entry per line")
    for location, line in entries:
        yield location, line.strip()


def _json_list(path: epath.Path, text: str) -> Iterator[tuple[int, str]]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); fix the file") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not a list of strings ({error}); fix the file") from None
    if isinstance(entries, dict) and set(entries) == {str(i) for i in range(len(entries))}:
        entries = [entries[str(i)] for i in range(len(entries))]
        # Keras' imagenet_class_index.json has pairs: {"0": ["n01440764", "tench"], ...}.
        entries = [" ".join(x) if _is_texts(x) else x for x in entries]
    if not isinstance(entries, list):
        raise InputError(f'{path} must be a JSON list, got something else; write ["...", "..."]')
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str):
            raise InputError(f"{path}, item {number} must be a string, got {entry!r}; fix the list")
        # JSON can escape half a surrogate pair, which no text file can hold.
        if not is_utf8(entry):
            raise InputError(f"{path}, item {number} must be text, got {entry!r}; fix the list")
        yield number, entry


def _is_texts(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(text, str) for text in entry)
