"""The command lines and Python in a Markdown page, and what is wrong with them."""

import ast
import contextlib
import importlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest import mock

from absl import flags

from launch import cli
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.config import load_config
from launch.runtime.preflight.preflight import parse_target
from launch.submit import __main__ as submit
from launch.submit import task
from launch.submit.checkout import Checkout
from tests.support import ROOT

# Programs that are not ours: only `sh -n` checks their lines.
OTHERS = {
    ".": "reads what sh launch/demo.sh has made",
    "cd": "needs what git clone has made",
    "docker": "needs a registry",
    "export": "sets a variable for the lines below it",
    "gcloud": "needs a project of Google Cloud",
    "git": "needs a network",
    "hf": "needs an account of the Hugging Face Hub",
    "kubectl": "needs a cluster",
    "pre-commit": "needs a repository and a network",
    "tfds": "needs TensorFlow",
}
ROOMS = ("classifiers", "imagen_ft", "input_pipeline", "launch")
_FOLDERS = (*ROOMS, "configs", "tests")  # pages of runs and synthetic sets are elsewhere
# Words used in place of the terms of DESIGN.md, and idioms that no native writer would use.
_ODD = (
    r"generated (?:image )?(?:set|folder)s?",
    r"goes on (?:where|with|from|in)",
    r"mend(?:s|ed)?",
    r"leaves? away",
    r"(?:is|are) told of",
    r"1 is none",
    r"digests?",
    r"the whole road",
    r"stands? for",
)
_ODD_PHRASE = re.compile(rf"\b(?:{'|'.join(_ODD)})\b", re.IGNORECASE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")
_OF_TESTS = "tests."
_EXTRA = re.compile(r"^\.\[(.*)\]$")


def all_pages() -> list[str]:
    """Every page of the project, relative to its folder."""
    below = (path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.md"))
    return sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *below))


def broken_links(path: Path) -> list[str]:
    """A page's links to missing files and headings; links to other hosts are not checked."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", path.read_text())):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text())):
            broken.append(link)
    return broken


def odd_phrases(page: str) -> list[str]:
    """Phrases of `_ODD` outside code, in lower case."""
    text = " ".join(_CODE.sub("", page).split())
    return [found.lower() for found in _ODD_PHRASE.findall(text)]


def _anchors(page: str) -> set[str]:
    """GitHub's anchors for the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {re.sub(r"\s", "-", heading.strip()) for heading in words}


def blocks(page: str, *languages: str) -> list[str]:
    """The text between ```LANGUAGE and ```, for these languages."""
    return [text for found, text in _BLOCK.findall(page) if found in languages]


def command_lines(block: str) -> list[str]:
    """A block's lines with their continuations, without empty lines and comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def broken_lines(page: str) -> list[str]:
    """A page's command lines that would not run, each with the reason.

    Must be called in the folder of the project.
    """
    scripts = blocks(page, "sh")
    read = subprocess.run(["sh", "-n"], input="\n".join(scripts), capture_output=True, text=True)
    broken = [f"sh -n: {read.stderr}"] if read.returncode else []
    for line in (line for script in scripts for line in command_lines(script)):
        try:
            _check(shlex.split(line, comments=True))
        except InputError as error:
            broken.append(f"{line}: {error}")
    return broken


def broken_python(page: str) -> list[str]:
    """Python blocks that do not compile, and imported names that do not exist."""
    broken = []
    for block in blocks(page, "python"):
        try:
            nodes = list(ast.walk(ast.parse(block)))
        except SyntaxError as error:
            broken.append(f"{error}: {block}")
            continue
        broken += [name for name in _imports(nodes) if not _exists(name)]
    return broken


def unknown_messages(page: str, section: str) -> list[str]:
    """Parts of messages in a section's tables that no source has; `…` is what varies."""
    sources = [path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    # A message may continue on the next line of the source.
    text = re.sub(r'"\s*\n\s*f?"', "", "".join(sources)).replace('\\"', '"')
    rows = re.findall(
        r"^\| `([^|]+)`", page.partition(f"## {section}\n")[2].partition("\n## ")[0], re.M
    )
    fragments = [part.strip() for row in rows for part in row.replace("`", "").split("…")]
    return [part for part in fragments if part not in text]


def _imports(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _exists(name: str) -> bool:
    """Whether a dotted name is a module or a member of one."""
    if _is_module(name):
        return True
    module, _, member = name.rpartition(".")
    return _is_module(module) and hasattr(importlib.import_module(module), member)


def _is_module(name: str) -> bool:
    try:
        return bool(name) and find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _check(words: Sequence[str]) -> None:
    """Raises `InputError` if a command line would not run."""
    words = list(words)
    while _VARIABLE.match(words[0]):
        del words[0]
    if words[0] == "pip":
        _check_extras(words)
    elif words[0] == "sh":
        if not (ROOT / words[1]).is_file():
            raise InputError(f"there is no script {words[1]}")
    elif words[:2] == ["python", "-m"]:
        _check_module(words[2], words[3:])
    elif words[0] not in OTHERS:
        raise InputError(f"{words[0]} is neither ours nor one of {', '.join(OTHERS)}")


def _check_extras(words: Sequence[str]) -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    assigned = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    known = {key.value for key in assigned["EXTRAS"].keys}
    wanted = {name for word in words if (m := _EXTRA.match(word)) for name in m[1].split(",")}
    if wanted - known:
        raise InputError(f"setup.py has no extra {', '.join(sorted(wanted - known))}")


def _check_module(name: str, argv: Sequence[str]) -> None:
    if name == "launch.submit":
        _check_submit(argv)
    elif not _is_module(name):
        raise InputError(f"there is no module {name}")
    elif name.startswith(_OF_TESTS):
        _check_command_of_tests(name, argv)
    else:
        _check_command(name, argv)


def _check_submit(argv: Sequence[str]) -> None:
    """Checks the mode's options, then the task after `--`."""
    words = ["launch.submit", *argv]
    if argv[0] in submit.ACTIONS:
        values = cli.parse_flags([words[0], *words[3:]], "", submit._define_action_flags)
        if len(words) < 3 or values is None:
            raise InputError(f"no job is named behind {argv[0]}")
        return
    checkout = Checkout(ROOT, "0" * 40, is_dirty=False)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(submit, "find_checkout", lambda is_needed: checkout),
        mock.patch.object(task.Task, "flags", property(_flags_of)),
        mock.patch.object(task.Task, "check", lambda self, preflight="": None),
    ):
        # This checkout may be on one of them.
        anywhere = ["--node_disks="] if argv[0] == "slurm" else []
        submit.main([*words[:2], "--dry_run", *anywhere, *words[2:]])
    behind = argv[list(argv).index("--") + 1 :]
    _check(behind)


def _flags_of(command: task.Task) -> frozenset[str]:
    """The flags that the task's --help would list in a process of its own."""
    values = flags.FlagValues()
    _module(command.module).define_flags(values)
    return frozenset(("all_tensors", "config", "dry_run", "workdir", *values))


def _module(name: str) -> ModuleType:
    """The module that `python -m NAME` runs."""
    package = find_spec(name).submodule_search_locations
    return importlib.import_module(f"{name}.__main__" if package else name)


def _check_command_of_tests(name: str, argv: Sequence[str]) -> None:
    """Looks for flags in the text, as importing some modules takes seconds."""
    sources = [name, *(["tests.benchmarks.harness"] if "benchmarks" in name else [])]
    text = "".join((ROOT / f"{file.replace('.', '/')}.py").read_text() for file in sources)
    names = [word.partition("=")[0] for word in argv if word.startswith("--")]
    if unknown := [name for name in names if f'"{name}"' not in text]:
        raise InputError(f"{name} has no flag {unknown[0]}")


def _check_command(name: str, argv: Sequence[str]) -> None:
    module = _module(name)
    define_flags = getattr(module, "define_flags", None)
    words = [name, *argv]
    if define_flags and getattr(module, "parse_flags", None) is cli.parse_flags:
        values = cli.parse_flags(words, "", define_flags)
        if values is not None and "config" in values:
            load_config(values.config)
        return
    lacking = getattr(module, "lacking", None)
    values = app.parse(words, "", define_flags, lacking).flags
    if "preflight" in values and values.preflight:
        parse_target(values.preflight)
