"""The notebooks: what can be seen of them without running them, and that they run."""

import ast
import base64
import collections
import re
import socket
import symtable
from unittest import mock

import jax
import nbformat
import pytest

from imagen_ft import cascade
from launch.colab.install import CHIPS
from launch.errors import InputError
from launch.runtime.config import load_config
from tests.launch.colab import run_notebooks
from tests.launch.colab.run_notebooks import (
    BADGE,
    NOTEBOOKS,
    OPENED_AT,
    PAGES,
    PLACEHOLDER,
    read,
    repository_of,
)
from tests.support import ROOT

MOST_BYTES = 1_500_000
# What Colab's runtimes own, and no cell may install.
OWNED = re.compile(rf"\b(pip|uv|apt|conda)\b.*\b(numpy|jaxlib|jax|{'|'.join(CHIPS)})\b")
# Of the machine that the outputs were saved on.
MACHINE = re.compile(
    r"/(work|tmp|root|home|Users|opt|usr|private|mnt|content|var)/"
    rf"|{re.escape(str(ROOT))}|{re.escape(socket.gethostname())}"
    r"|\d{4}-\d\d-\d\d[ T]\d\d:\d\d|\bWARNING\b|Warning:|Traceback"
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell):
    """All that a cell has printed and displayed as text."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (v for kind, v in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.fixture(params=NOTEBOOKS)
def path(request):
    return NOTEBOOKS[request.param]


@pytest.fixture
def notebook(path):
    return read(path)


def test_form(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        ast.parse(cell.source)
        assert not OWNED.search(cell.source)


def test_every_output_is_saved_and_can_be_read_elsewhere(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    silent = [cell.source for cell in cells if not cell.outputs]
    # A cell of form fields, or of imports and functions, has nothing to say.
    assert all(prints_nothing(source) for source in silent), silent
    for cell in cells:
        kinds = {output.output_type for output in cell.outputs}
        assert kinds <= {"stream", "display_data", "execute_result"}
        for text in texts_of(cell):
            assert not MACHINE.search(text), text
            assert "\r" not in text and "\x1b" not in text and text.count("\n") < 60
        for output in cell.outputs:
            data = output.get("data", {})
            assert set(data) <= {"text/plain", "image/png"}
            if "image/png" in data:
                assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def prints_nothing(source):
    """Whether it only sets, imports and defines."""
    body = ast.parse(source).body
    run = [node for node in body if not isinstance(node, ast.FunctionDef)]
    return "print(" not in ast.unparse(run) and not isinstance(body[-1], ast.Expr)


def names_of(source):
    """Names that a cell sets, and those that it takes from others."""
    top = symtable.symtable(source, "cell", "exec")
    sets = {s.get_name() for s in top.get_symbols() if s.is_assigned() and not s.is_imported()}
    own = sets | {symbol.get_name() for symbol in top.get_symbols() if symbol.is_imported()}
    tables, reads = [top], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        symbols = [s for s in table.get_symbols() if s.is_referenced()]
        reads |= {s.get_name() for s in symbols if table is top or s.is_global()}
    return sets, reads - own


def test_a_cell_can_be_run_again(notebook):
    """What a cell takes from another one, only that one sets."""
    names = [names_of(cell.source) for cell in code_cells(notebook)]
    counts = collections.Counter(name for sets, _ in names for name in sets)
    taken = {name for _, reads in names for name in reads}
    assert not {name for name in taken if counts[name] > 1}


def test_badge_and_form_name_the_same_repository(path, notebook):
    repository = repository_of(notebook)
    opened_at = OPENED_AT.format(repository=repository, name=path.name)
    badge = f"[![Open in Colab]({BADGE})]({opened_at})"
    assert notebook.cells[0].source.startswith(badge)
    assert {repository_of(read(other)) for other in NOTEBOOKS.values()} == {repository}
    assert badge.replace("Open in Colab", path.stem) in (ROOT / "README.md").read_text()


def test_one_first_cell_for_all(notebook):
    [first] = {code_cells(read(other))[0].source for other in NOTEBOOKS.values()}
    assert code_cells(notebook)[0].source == first


def test_links_lead_to_files(path, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


def test_the_repository_is_named_in_one_go(monkeypatch, tmp_path):
    copies = {name: tmp_path / path.name for name, path in NOTEBOOKS.items()}
    for name, path in NOTEBOOKS.items():
        copies[name].write_text(path.read_text())
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", copies)
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    run_notebooks.rename("someone/something")
    for name, copy in copies.items():
        assert repository_of(read(copy)) == "someone/something"
        opened_at = OPENED_AT.format(repository="someone/something", name=copy.name)
        assert opened_at in copy.read_text() and opened_at in (tmp_path / "README.md").read_text()
        assert f"github/{repository_of(read(NOTEBOOKS[name]))}/blob" not in copy.read_text()
    assert not [page for page in PAGES if PLACEHOLDER in (tmp_path / page).read_text()]
    page = (tmp_path / "launch" / "README.md").read_text()
    assert "git clone https://github.com/someone/something.git" in page


def test_outputs_are_cleaned():
    bar = nbformat.v4.new_output("stream", name="stderr", text="\rall   0%\rall 100%\n")
    line = nbformat.v4.new_output("stream", text="done \n")
    data = {"text/plain": "<Picture at 0x7f>", "image/png": "iVBORw0KGgo="}
    picture = nbformat.v4.new_output("display_data", data=data)
    cell = nbformat.v4.new_code_cell("f()", outputs=[bar, line, picture])
    [cleaned] = run_notebooks.clean(nbformat.v4.new_notebook(cells=[cell])).cells
    assert list(texts_of(cleaned)) == ["all 100%\ndone\n", "", "picture"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one notebook has trained, the others find there, as in one session of Colab."""
    return tmp_path_factory.mktemp("runs")


def test_deepfloyd_if_is_read_from_the_hub(monkeypatch, tmp_path):
    settings = dict(CASCADE="DeepFloyd IF", PROMPTS="a goldfish; two cats", RUNS=str(tmp_path))
    notebook = run_notebooks.with_settings(read(NOTEBOOKS["sample"]), **settings)
    sources = [cell.source for cell in code_cells(notebook)]
    [until] = [i for i, source in enumerate(sources) if "Cascade.load(" in source]
    # On a T4 T5 has no room beside the cascades of an earlier run of all cells.
    names = re.findall(r"^ *(\w+) = \w+\.(?:load|with_)\(", "\n".join(sources), re.MULTILINE)
    session = dict.fromkeys(names, "of an earlier run")
    assert {"cascade", "other"} <= session.keys()

    def stand_in(*_, **__):
        assert not [name for name in names if session[name] is not None]
        raise InputError("that will do")

    load = mock.Mock(side_effect=stand_in)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cascade.Cascade, "load", load)
    monkeypatch.setattr(cascade, "memory_table", lambda config: "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="that will do"):
        exec("\n".join(sources[1 : until + 1]), session)
    config = load_config(load.call_args.args[0])
    assert config.text.weights == "DeepFloyd/IF-I-M-v1.0"
    assert config.stages.sr256.run == "deepfloyd:DeepFloyd/IF-II-M-v1.0"
    assert load.call_args.kwargs == dict(prompts=["a goldfish", "two cats"], stages={})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "of_mine"), [*((name, False) for name in NOTEBOOKS), ("sample", True)]
)
def test_it_runs_from_top_to_bottom(name, of_mine, runs):
    settings = dict(TINY=True, RUNS=str(runs))
    if of_mine:
        stages = {stage: str(runs / f"finetune_{stage}") for stage in ("base4", "sr8")}
        settings |= dict(CASCADE="a run of yours", STAGES=stages, WHERE="all stages")
    done = run_notebooks.execute(run_notebooks.with_settings(read(NOTEBOOKS[name]), **settings))
    outputs = [output for cell in code_cells(done) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    if name == "road":
        # A notebook has no terminal, and yet a bar shows how far its commands are.
        assert "all 100%" in "".join(output.get("text", "") for output in outputs)
