"""What GitHub, PyPI and citation tools read of the project."""

import ast
import re
import shlex

import pytest
import yaml

from tests.support import ROOT

ROOMS = ("classifiers", "configs", "imagen_ft", "input_pipeline", "launch")
GITHUB = ROOT / ".github"
WORKFLOW = GITHUB / "workflows" / "tests.yml"
SETUP = (ROOT / "setup.py").read_text()


def load(path):
    return yaml.safe_load(path.read_text())


def steps(job):
    return [step.get("run", "") for step in load(WORKFLOW)["jobs"][job]["steps"]]


def test_the_workflow_runs_what_contributors_run():
    assert {"ruff format --check .", "lint-imports"} <= set(steps("lint"))
    assert any(step.startswith("ruff check") for step in steps("lint"))
    assert "mypy" in steps("types") and "sh launch/test.sh" in steps("suite")
    jobs = load(WORKFLOW)["jobs"]
    assert all(job["timeout-minutes"] for job in jobs.values())
    assert jobs["macos"]["runs-on"].startswith("macos")
    scripts = [shlex.split(step, comments=True) for job in jobs for step in steps(job)]
    names = [words[1] for words in scripts if words[:1] == ["sh"]]
    assert "launch/demo.sh" in names and all((ROOT / name).is_file() for name in names)


def test_the_workflow_runs_on_every_python_that_is_supported():
    pythons = load(WORKFLOW)["jobs"]["suite"]["strategy"]["matrix"]["python"]
    (oldest,) = re.findall(r'python_requires=">=([\d.]+)"', SETUP)
    tried = re.findall(r"python(3\.\d+)", (ROOT / "launch" / "environment.sh").read_text())
    assert pythons[0] == oldest and set(pythons) == set(tried)
    assert str(tuple(pythons)).replace("'", '"') in SETUP


def test_tools_have_one_version_everywhere():
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    wanted = {package for hook in hooks for package in hook["additional_dependencies"]}
    assert len(wanted) == 3
    for package in wanted:
        assert f'"{package}"' in SETUP and f'"{package}"' in WORKFLOW.read_text()


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_forms_can_be_read(path):
    form = load(path)
    if "body" in form:
        kinds = {"checkboxes", "dropdown", "input", "markdown", "textarea"}
        assert {field["type"] for field in form["body"]} <= kinds
        names = [field["id"] for field in form["body"]]
        assert len(set(names)) == len(names)


def test_a_bug_report_needs_config_and_versions():
    fields = {field["id"]: field for field in load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    for name, said in (("config", "--dry_run"), ("versions", "python -m launch.versions")):
        assert said in fields[name]["attributes"]["description"]
        assert fields[name]["validations"]["required"]


def test_the_citation():
    """The keys that version 1.2.0 of the format requires."""
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert f'version="{citation["version"]}"' in SETUP
    assert citation["license"] == re.findall(r'license="([^"]+)"', SETUP)[0]
    works = [citation["preferred-citation"], *citation["references"]]
    for work in works:
        assert work["type"] == "article" and work["title"] and 2000 < work["year"] < 2100
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", work["url"])
    for person in [one for work in (citation, *works) for one in work["authors"]]:
        assert set(person) in ({"name"}, {"family-names", "given-names"})


def test_types_are_packaged():
    (call,) = [
        node
        for node in ast.walk(ast.parse(SETUP))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    ]
    (data,) = [word.value for word in call.keywords if word.arg == "package_data"]
    packages = ("classifiers", "imagen_ft", "input_pipeline")
    for room in ROOMS:
        assert (ROOT / room / "py.typed").read_bytes() == b""
    assert ast.unparse(data).count("'py.typed'") == len(ROOMS) - len(packages) + 1


def test_the_changelog_has_the_version():
    assert re.findall(r'version="([\d.]+)"', SETUP)[0] in (ROOT / "CHANGELOG.md").read_text()
