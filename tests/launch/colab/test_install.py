"""The notebooks' first cell, on runtimes that are made up: versions, pip and git are stand-ins."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from launch.colab import install
from tests.launch.colab.run_notebooks import NOTEBOOKS, PLACEHOLDER, read, with_settings
from tests.support import ROOT

# What the project lacks in Colab, beside its JAX.
OLD = {"flax": "0.11.2", "numpy": "2.1.3"}
GPU = {"jax-cuda12-plugin": "1", "jax-cuda12-pjrt": "1"}


def met(**changes):
    """Versions that setup.py is content with, but for these."""
    versions = {each.name: importlib.metadata.version(each.name) for each in install.required(ROOT)}
    return versions | {"jaxlib": versions["jax"]} | changes


class Pip:
    """Notes how it is called, and leaves the versions that it would."""

    def __init__(self, monkeypatch, before, after=None, code=0):
        self.versions, self.after, self.code = before, after or met(), code
        self.commands, self.constraints = [], None
        monkeypatch.setattr(install, "installed", lambda: dict(self.versions))
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command, **options):
        self.commands.append(command)
        self.constraints = Path(command[command.index("--constraint") + 1]).read_text().split()
        if not self.code:
            self.versions = self.versions | self.after
        return subprocess.CompletedProcess(command, self.code, stdout="ERROR: no network\n")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "setup.py").write_text((ROOT / "setup.py").read_text())
    return tmp_path


def test_nothing_is_installed_where_nothing_is_missing(monkeypatch, project, capsys):
    pip = Pip(monkeypatch, met(numpy="2.99"))
    install.install(project)
    assert not pip.commands
    assert capsys.readouterr().out == f"Ready, with JAX {met()['jax']}.\n"


@pytest.mark.parametrize(
    ("versions", "kept", "extra"),
    [
        # A JAX that will do stays, with all that belongs to it.
        (OLD | GPU, {"numpy==2.1.3", "jax==", "jaxlib==", "jax-cuda12-plugin==1"}, ""),
        (OLD | {"libtpu": "0.1"}, {"numpy==2.1.3", "jax==", "jaxlib==", "libtpu==0.1"}, ""),
        # One that is too old is replaced by one for the same chip.
        (OLD | GPU | {"jax": "0.7.2", "jaxlib": "0.7.2"}, {"numpy==2.1.3"}, "[cuda]"),
        (OLD | {"jax": "0.7.2", "libtpu": "0.0.21"}, {"numpy==2.1.3"}, "[tpu]"),
        (OLD | {"jax": "0.7.2"}, {"numpy==2.1.3"}, ""),
        ({"jax": "0.7.2", "numpy": "1.26.4"}, set(), ""),
    ],
    ids=["GPU", "TPU", "old GPU", "old TPU", "old CPU", "old NumPy"],
)
def test_what_the_runtime_owns_is_kept(monkeypatch, project, versions, kept, extra):
    pip = Pip(monkeypatch, met(**versions), met(numpy="2.1.3"))
    monkeypatch.setattr(install, "loaded", lambda packages: [])
    install.install(project)
    [command] = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == f"{project}{extra}"
    expected = {line + met()["jax"] if line.endswith("==") else line for line in kept}
    if "jax-cuda12-plugin" in versions and not extra:
        expected.add("jax-cuda12-pjrt==1")
    assert set(pip.constraints) == expected


def test_buckets_want_more_packages(monkeypatch, project):
    gcs = [each.name for each in install.required(ROOT, ("GCS",))]
    lacking = met(jax="0.7.2", libtpu="0.1", **dict.fromkeys(gcs, "0.1"))
    everything = met(**{name: importlib.metadata.version(name) for name in gcs})
    pip = Pip(monkeypatch, lacking, everything)
    monkeypatch.setattr(install, "loaded", lambda packages: [])
    install.install(project, gcs=True)
    install.install(project, gcs=True)
    [command] = pip.commands
    assert command[-1] == f"{project}[tpu,gcs]"


@pytest.mark.parametrize("module", ["numpy", "wonderful"])
def test_a_restart_is_asked_for_where_a_loaded_module_was_replaced(monkeypatch, project, module):
    Pip(monkeypatch, met(numpy="1.26.4"), met(numpy="2.1.3"))
    names = {module: ["numpy"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: names)
    if module == "wonderful":  # is not loaded
        install.install(project)
        return
    with pytest.raises(SystemExit, match=r"^numpy was loaded .* Runtime > Restart session"):
        install.install(project)


def test_pip_fails_or_installs_something_else(monkeypatch, project):
    Pip(monkeypatch, met(**OLD), code=1)
    with pytest.raises(SystemExit, match="pip could not install the project:\nERROR: no network"):
        install.install(project)
    Pip(monkeypatch, met(**OLD), met(flax="0.11.2"))
    with pytest.raises(SystemExit, match=r"other versions than .*: flax.* \(here: 0\.11\.2\)$"):
        install.install(project)


def first_cell(**settings):
    notebook = with_settings(read(NOTEBOOKS["road"]), **settings)
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_the_first_cell_clones_only_what_was_named(monkeypatch, tmp_path):
    commands, errors = [], ["repository not found"]

    def clone(command, **options):
        commands.append(command)
        if errors:
            return subprocess.CompletedProcess(command, 128, stderr=errors.pop())
        (tmp_path / "imagen-ft").mkdir()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", clone)
    monkeypatch.setattr(install, "install", lambda: commands.append("install"))
    with pytest.raises(SystemExit, match=r"^REPOSITORY must be .* fill in the form$"):
        exec(first_cell(REPOSITORY=PLACEHOLDER), {})
    assert not commands
    cell = first_cell(REPOSITORY="someone/something")
    with pytest.raises(SystemExit, match=r"^someone/something could not .*: repository not found$"):
        exec(cell, {})
    exec(cell, {})
    # A session that was restarted is in the folder above the clone.
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert Path.cwd() == tmp_path / "imagen-ft"
    asked, cloned, *installed = commands
    assert asked == cloned
    assert cloned[-2:] == ["https://github.com/someone/something.git", Path("imagen-ft")]
    assert installed == ["install"] * 2


def test_the_first_cell_uses_the_project_that_it_is_in(monkeypatch):
    # The folder is the test's again when it ends.
    monkeypatch.chdir(ROOT / "launch" / "colab")
    monkeypatch.setattr(install, "install", lambda: None)
    exec(first_cell(REPOSITORY=PLACEHOLDER), {})
    assert Path.cwd() == ROOT
