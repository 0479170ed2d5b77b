"""The pages tell commands that the commands take, and Python that imports what there is."""

import itertools
import re
import runpy
import shlex
import sys
import warnings

import pytest

from imagen_ft.demo import report
from launch.runtime.config import load_config
from launch.submit import __main__ as submit
from tests.launch.test_commands_in_jobs import ALONE, TOGETHER
from tests.support import ROOT, pages

PAGES = pages.all_pages()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    # What a command line hands over by its name, and what gcloud would be asked.
    for name in ("HF_TOKEN", "CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE"):
        monkeypatch.setenv(name, "x")


@pytest.mark.parametrize("path", PAGES)
def test_command_lines(path):
    assert not pages.broken_lines((ROOT / path).read_text())


@pytest.mark.parametrize("path", PAGES)
def test_a_run_that_a_line_begins_with_is_made_by_one_above(path):
    made = set()
    for block in pages.blocks((ROOT / path).read_text(), "sh"):
        for line in pages.command_lines(block):
            words = [word for word in shlex.split(line, comments=True) if "=" in word]
            options = dict(word.removeprefix("--").split("=", 1) for word in words)
            if "workdir" in options and "config" in options:
                begin = load_config(options["config"]).get("init_from", "")
                begin = options.get("config.init_from", begin)
                assert begin in made or not begin.startswith("runs/"), line
                made.add(options["workdir"])


@pytest.mark.parametrize("path", PAGES)
def test_python(path):
    assert not pages.broken_python((ROOT / path).read_text())


def test_messages():
    page, section = (ROOT / "launch/README.md").read_text(), "Troubleshooting"
    assert page.count("| `") > 15 and not pages.unknown_messages(page, section)
    rotten = page.replace(f"## {section}\n", f"## {section}\n| `the store says … of pages` | |\n")
    assert pages.unknown_messages(rotten, section) == ["of pages"]


def test_every_page_is_looked_at():
    rooms = ("classifiers", "configs", "imagen_ft", "input_pipeline", "launch")
    assert {"README.md", "CONTRIBUTING.md", *(f"{room}/README.md" for room in rooms)} <= set(PAGES)
    texts = [(ROOT / path).read_text() for path in PAGES]
    assert sum(len(pages.blocks(text, "sh")) for text in texts) > 30
    assert sum(len(pages.blocks(text, "python")) for text in texts) >= 10


@pytest.mark.parametrize("path", PAGES)
def test_links(path):
    assert not pages.broken_links(ROOT / path)


def test_rotten_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# Title\n## A network: `x`\n```sh\n# no title\n```\n")
    page = tmp_path / "page.md"
    good = (
        "[a](other.md) [b](other.md#a-network-x) [c](https://x.y) [d](#here) ![e](e.png)\n# Here\n"
    )
    (tmp_path / "e.png").touch()
    page.write_text(good)
    assert not pages.broken_links(page)
    rotten = ("none.md", "other.md#no-title", "#there", "other.md#titel")
    page.write_text(good + "".join(f"[x]({link})\n" for link in rotten))
    assert pages.broken_links(page) == list(rotten)


def test_the_first_page_is_short_and_begins_with_a_picture():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 200
    assert any(line.startswith("![") for line in lines[:20])


@pytest.mark.parametrize("path", PAGES)
def test_one_term_for_one_thing(path):
    assert not pages.odd_phrases((ROOT / path).read_text())


def test_odd_phrases_are_found():
    text = (
        "It goes on where it stopped.\nMend that.\n`generated set` is a name.\nA generated\nset.\n"
    )
    assert pages.odd_phrases(text) == ["goes on where", "mend", "generated set"]


FINETUNE = "python -m imagen_ft.finetune --config=configs/digits/finetune_base4.py"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{FINETUNE} --workdri=runs/x", "Unknown command line flag 'workdri'"),
        (f"{FINETUNE} \\\n    --workdri=runs/x", "Unknown command line flag 'workdri'"),
        (FINETUNE, "--workdir is missing"),
        (
            f"{FINETUNE} --workdir=runs/x --config.total_step=3",
            "the config has no field 'total_step'",
        ),
        (f"{FINETUNE} --workdir=runs/x --config.total_steps=many", "total_steps"),
        (f"{FINETUNE}:k=3 --workdir=runs/x", "there is no argument 'k'"),
        (f"{FINETUNE} --preflight=v3:4x4", "--preflight must begin with one of v4"),
        (f"{FINETUNE.replace('base4', 'base5')} --workdir=x", "no such file"),
        (f"NPROC=1 {FINETUNE.replace('ft.fine', 'ft.')}", "there is no module imagen_ft.tune"),
        ("python -m input_pipeline.prepare --config=x.py --to=x --source=x", "no such file: x.py"),
        ("python -m imagen_ft.weights --form=x", "Unknown command line flag 'form'"),
        ("python -m tests.benchmarks.unets", "there is no module tests.benchmarks.unets"),
        ("python -m tests.benchmarks.unet --quickly", "has no flag --quickly"),
        (f"python -m launch.submit lokal -- {FINETUNE} --workdir=x", "MODE must be one of local"),
        (f"python -m launch.submit local --process=2 -- {FINETUNE} --workdir=x", "'process'"),
        (f"python -m launch.submit local -- {FINETUNE} --workdri=x", "'workdri'"),
        ("python -m launch.submit status", "no job is named behind status"),
        ("python -m launch.submit status x --now", "'now'"),
        ('pip install ".[gcs,nothing]"', "no extra nothing"),
        ("sh launch/demo.bash", "there is no script launch/demo.bash"),
        ("frobnicate --all", "frobnicate is neither ours nor one of"),
        ("sh launch/demo.sh (now", "sh -n"),
    ],
)
def test_a_rotten_line_is_found(line, reason):
    good = f"{FINETUNE} --workdir=runs/x    # as it is"
    (broken,) = pages.broken_lines(f"Text.\n\n```sh\n{good}\n{line}\n```\n")
    assert reason in broken


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("from imagen_ft.cascade import Cascada", "imagen_ft.cascade.Cascada"),
        ("import imagen_ft.cascades", "imagen_ft.cascades"),
        ("x = (1", "was never closed"),
    ],
)
def test_rotten_python_is_found(block, reason):
    good = "from imagen_ft.cascade import Cascade\nimport imagen_ft.cascade"
    page = f"```python\n{good}\n```\n\n```python\n{block}\n```\n"
    (broken,) = pages.broken_python(page)
    assert reason in broken


def test_the_demos_table_is_that_of_the_demo():
    lines = (ROOT / "README.md").read_text().splitlines()
    head = f"| {' | '.join(report.HEADER)} |"
    assert lines.count(head) == 1
    body = itertools.takewhile(lambda line: line.startswith("| "), lines[lines.index(head) + 2 :])
    table = {arm: cells for arm, *cells in ([c.strip() for c in x[2:-1].split("|")] for x in body)}
    assert tuple(table) == report.ORDER
    means = {arm: float(cells[0].partition(" ± ")[0]) for arm, cells in table.items()}
    for arm, (_, gain, p_value) in table.items():
        if arm == "real":
            assert gain == p_value == ""
        else:
            assert float(gain) == pytest.approx(means[arm] - means["real"], abs=0.101)
            assert 0 < float(p_value) < 1


def test_the_extras_of_pages_and_headers_are_there():
    setup = (ROOT / "setup.py").read_text()
    configs = [
        path for path in (ROOT / "configs").glob("*/*.py") if "Hardware: " in path.read_text()
    ]
    headers = {path.relative_to(ROOT).as_posix(): path.read_text() for path in configs}
    assert len(headers) > 30
    for path, text in headers.items():
        assert "/digits/" in path or all(f".[{name}]" in text for name in ("tpu", "cuda")), path
    pages = [(ROOT / path).read_text() for path in PAGES]
    for extra in set(
        re.findall(r'pip install "\.\[(\w+)\]"', "\n".join([*pages, *headers.values()]))
    ):
        assert f'"{extra}": ' in setup, extra


@pytest.mark.parametrize("name", sorted(TOGETHER | ALONE))
def test_help_of_every_command(name, capsys, monkeypatch):
    """One sentence, three examples that the command takes, flags in groups, each with a default."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore", RuntimeWarning)  # Other tests have imported it.
        runpy.run_module(name, run_name="__main__")
    out, err = capsys.readouterr()
    assert not ended.value.code and not err
    paragraphs = out.split("\n\n")
    sentence = re.sub(r"\(.*?\)", "", " ".join(paragraphs[0].split())).replace(" .", ".")
    assert re.fullmatch(r"[A-Z][a-z]+s [^.]*(?:\.\w[^.]*)*\.", sentence), sentence
    lines = pages.command_lines(out.partition("\nflags:\n")[0].replace("'", ""))
    examples = [line.strip() for line in lines if line.strip().startswith(f"python -m {name}")]
    examples = [line for line in examples if "MODE" not in line and "|" not in line]
    assert len(set(examples)) >= 3
    assert not pages.broken_lines("```sh\n" + "\n".join(examples) + "\n```\n")
    if name == "launch.submit":
        return  # Its modes have flags, see below.
    flags = [line for line in out.splitlines() if line.startswith("  --")]
    assert flags and all("default" in line or line.startswith("  --config") for line in flags)
    assert "\nevery command:\n" in out or "\nseveral processes:\n" in out


@pytest.mark.parametrize("mode", submit.MODES)
def test_help_of_a_mode_has_examples(mode, capsys):
    assert submit.main(["launch.submit", mode, "--help"]) == 0
    text = capsys.readouterr().out.partition("\nflags:\n")[0]
    examples = [x for x in pages.command_lines(text) if x.startswith("python -m launch.submit")]
    assert len(set(examples)) == 4  # with the form of all
    assert not pages.broken_lines("```sh\n" + "\n".join(examples[1:]) + "\n```\n")


def test_help_of_a_mode_has_groups(capsys):
    assert submit.main(["launch.submit", "gke", "--help"]) == 0
    out = capsys.readouterr().out
    for title in ("flags", "every mode", "TPUs", "Google Cloud"):
        assert f"\n{title}:\n  --" in out
    assert all("default" in line for line in out.splitlines() if line.startswith("  --"))
