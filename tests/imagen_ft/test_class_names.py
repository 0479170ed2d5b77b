import pytest

from imagen_ft import class_names
from input_pipeline.files import InputError


def test_imagenet():
    names = class_names.load("imagenet", expected=1000)
    assert len(names) == 1000 and len(set(names)) == 998
    assert (names[0], names[134], names[517]) == ("tench", "crane bird", "construction crane")
    assert names[657] == names[744] == "missile" and names[836] == names[837] == "sunglasses"
    assert names[999] == "toilet paper"
    assert all(name == name.strip() != "" for name in names)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("names.txt", b"\xef\xbb\xbfcaf\xc3\xa9\r\n  red  fox \nowl"),
        ("names.json", b'["caf\\u00e9", "red  fox ", "owl"]'),
    ],
)
def test_files(tmp_path, file, data):
    path = tmp_path / file
    path.write_bytes(data)
    assert class_names.load(path) == class_names.load(str(path), 3) == ("café", "red  fox", "owl")
    with pytest.raises(InputError, match=rf"{file} has 3 class names, 4 are needed"):
        class_names.load(path, expected=4)


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("a.txt", b"one\ntwo\none\n", r"a\.txt:3: 'one' is already at .*a\.txt:1: give every"),
        ("a.txt", b"one\n \ntwo\n", r"a\.txt:2 is blank"),
        ("a.txt", b"", r"a\.txt: the file is empty"),
        ("a.txt", b"one\n\xff\xfe", r"a\.txt:2: not text in UTF-8"),
        ("a.json", b"[]", r"a\.json: the file is empty"),
        ("a.json", b'["one",\n oops]', r"a\.json:2: not JSON"),
        ("a.json", b'{"one": 1}', r"a\.json: JSON, but no list"),
        ("a.json", b'["one", 2]', r"a\.json, item 2: 2 is no string"),
        ("a.json", b'["one", "one "]', r"a\.json, item 2: 'one' is already at .*item 1"),
        ("a.json", b'["one", ""]', r"a\.json, item 2 is blank"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, file, data, said):
    (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=said) as raised:
        class_names.load(tmp_path / file)
    assert "\n" not in str(raised.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        class_names.load(tmp_path / "none.txt")
