import pytest

from input_pipeline import class_names
from input_pipeline.imagenet import lemmas, wordnet_ids
from launch.errors import InputError


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
        ("names.json", b'{"2": "owl", "0": "caf\\u00e9", "1": "red  fox "}'),
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
        ("a.json", b"[" * 10**5, r"a\.json: not a list of texts \(maximum recursion"),
        ("a.json", b"9" * 5000, r"a\.json: not a list of texts \(Exceeds the limit"),
        ("a.json", b'{"one": 1}', r"a\.json: JSON, but no list"),
        ("a.json", b'["one", 2]', r"a\.json, item 2: 2 is no string"),
        ("a.json", b'["one", "one "]', r"a\.json, item 2: 'one' is already at .*item 1"),
        ("a.json", b'["one", ""]', r"a\.json, item 2 is blank"),
        ("a.json", b'["one", "\\ud83d"]', r"a\.json, item 2: '.ud83d' is no text; mend"),
        (
            "a.txt",
            b"n01440764 tench, Tinca tinca\n",
            r"a\.txt:1: .* is a WordNet id with its words",
        ),
        ("a.json", b'{"0": ["n01440764", "tench"]}', r"a\.json, item 1: 'n01440764 tench' is a W"),
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


NAMES = class_names.load("imagenet")
IDS = wordnet_ids()


def test_wordnet_ids():
    assert len(IDS) == len(set(IDS)) == 1000 and list(IDS) == sorted(IDS)
    named = dict(zip(IDS, NAMES, strict=True))
    # From WordNet 3.0: ids are offsets of its nouns.
    assert named["n01440764"] == "tench" and named["n15075141"] == "toilet paper"
    assert named["n02012849"] == "crane bird" and named["n03126707"] == "construction crane"


@pytest.mark.parametrize(
    ("named", "image_names", "resolved"),
    [
        ("", ("b", "a"), ("b", "a")),
        ((), ("b", "a"), ("b", "a")),
        ("", None, ()),
        (("b", "a"), ("b", "a"), ("b", "a")),
        (["b", "a"], None, ("b", "a")),
        ("imagenet", None, NAMES),
        ("imagenet", IDS, NAMES),
        ("imagenet", list(IDS), NAMES),
        ("imagenet", NAMES, NAMES),
        (lemmas(), IDS, lemmas()),
    ],
)
def test_resolve(named, image_names, resolved):
    assert class_names.resolve(named, image_names) == resolved


@pytest.mark.parametrize(
    ("named", "image_names", "said"),
    [
        (("a", "b"), ("a", "c"), "class 1 is 'b', but 'c' in the images of config.train"),
        (("a", "b"), ("b", "a"), "class 0 is 'a', but 'b' in"),
        (("a",), ("a", "b"), "class 1 is no class, but 'b' in"),
        (("a", "b"), ("a",), "class 1 is 'b', but no class in"),
        (NAMES, IDS, "class 0 is 'tench', but 'n01440764'"),
        ("imagenet", (*IDS[:7], *IDS[8:]), f"class 7 is {IDS[7]!r}, but {IDS[8]!r}"),
        ("imagenet", IDS[::-1], f"class 0 is {IDS[0]!r}, but {IDS[-1]!r}"),
        ("imagenet", (*NAMES[:-1], "x"), "class 999 is 'toilet paper', but 'x'"),
        ("imagenet", ("cat", "dog"), f"class 0 is {IDS[0]!r}, but 'cat'"),
    ],
)
def test_resolve_names_the_first_difference(named, image_names, said):
    with pytest.raises(InputError, match=said) as raised:
        class_names.resolve(named, image_names)
    assert "\n" not in str(raised.value)


def test_resolve_reads_files(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert class_names.resolve(str(tmp_path / "names.txt"), ("one", "two")) == ("one", "two")
