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
    with pytest.raises(InputError, match=rf"{file} must have 4 names, one per class, got 3"):
        class_names.load(path, expected=4)


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("a.txt", b"one\ntwo\none\n", r"a\.txt:3: 'one' is already at .*a\.txt:1; give every"),
        ("a.txt", b"one\n \ntwo\n", r"a\.txt:2 must be a class name, got a blank line"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt", b"one\n\xff\xfe", r"a\.txt:2 is not UTF-8"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.json", b'["one",\n oops]', r"a\.json:2: not JSON"),
        (
            "a.json",
            b"[" * 10**5,
            r"a\.json: not a list of strings \(maximum recursion depth exceeded while decoding a",
        ),
        (
            "a.json",
            b"9" * 5000,
            r"a\.json: not a list of strings \(Exceeds the limit",
        ),
        ("a.json", b'{"one": 1}', r"a\.json must be a JSON list"),
        ("a.json", b'["one", 2]', r"a\.json, item 2 must be a string, got 2"),
        ("a.json", b'["one", "one "]', r"a\.json, item 2: 'one' is already at .*item 1"),
        ("a.json", b'["one", ""]', r"a\.json, item 2 must be a class name, got a blank line"),
        (
            "a.json",
            b'["one", "\\ud83d"]',
            r"a\.json, item 2 must be text, got '\\ud83d'; fix the list",
        ),
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
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
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
        (
            ("a", "b"),
            ("a", "c"),
            r"class 1 must be 'c', as in the images of config\.train_source, got 'b'",
        ),
        (
            ("a", "b"),
            ("b", "a"),
            r"class 0 must be 'b', as in the images of config\.train_source, got 'a'",
        ),
        (
            ("a",),
            ("a", "b"),
            r"class 1 must be 'b', as in the images of config\.train_source, got no class",
        ),
        (
            ("a", "b"),
            ("a",),
            r"class 1 must be left out, as in the images of config\.train_source, got 'b'",
        ),
        (NAMES, IDS, r"class 0 must be .*got 'tench'"),
        ("imagenet", (*IDS[:7], *IDS[8:]), f"class 7 must be {IDS[8]!r}, .* got {IDS[7]!r}"),
        ("imagenet", IDS[::-1], f"class 0 must be {IDS[-1]!r}, .* got {IDS[0]!r}"),
        ("imagenet", (*NAMES[:-1], "x"), r"class 999 must be .*got 'toilet paper'"),
        ("imagenet", ("cat", "dog"), f"class 0 must be 'cat', .* got {IDS[0]!r}"),
    ],
)
def test_resolve_names_the_first_difference(named, image_names, said):
    with pytest.raises(InputError, match=said) as raised:
        class_names.resolve(named, image_names)
    assert "\n" not in str(raised.value)


def test_resolve_reads_files(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert class_names.resolve(str(tmp_path / "names.txt"), ("one", "two")) == ("one", "two")
