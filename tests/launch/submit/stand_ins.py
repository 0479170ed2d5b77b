"""Programs of other makers as stand-ins that note how they are called, and say what a test says."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from tests.support import ROOT

GOLDEN = Path(__file__).parent / "golden"
# -S and -E: it starts in 20 ms.
_SCRIPT = """#!{python} -SE
import json, os, sys
folder, name = {folder!r}, os.path.basename(sys.argv[0])
said = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
with open(f"{{folder}}/calls.jsonl", "a") as calls:
    calls.write(json.dumps([[name, *sys.argv[1:]], said]) + "\\n")
with open(f"{{folder}}/answers.json") as file:
    answers = json.load(file)
line = " ".join([name, *sys.argv[1:]])
for number, (part, out, err, code) in enumerate(answers):
    if part in line:
        # Of several answers to one call, each is given once, but for the last.
        if sum(other[0] == part for other in answers[number:]) > 1:
            with open(f"{{folder}}/answers.json", "w") as file:
                json.dump(answers[:number] + answers[number + 1:], file)
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
"""


@dataclasses.dataclass
class StandIns:
    """Programs on PATH that do nothing but answer.

    Attributes:
        folder: where they are.
    """

    folder: Path

    def install(self, *names: str) -> None:
        """Makes programs."""
        self.folder.mkdir(exist_ok=True)
        for name in names:
            path = self.folder / name
            path.write_text(_SCRIPT.format(python=sys.executable, folder=str(self.folder)))
            path.chmod(0o755)
        if not (self.folder / "answers.json").exists():
            (self.folder / "answers.json").write_text("[]")

    def answer(self, part: str, out: str = "", err: str = "", code: int = 0) -> None:
        """What a call is answered with whose command line has a part in it."""
        path = self.folder / "answers.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), [part, out, err, code]]))

    def calls(self) -> list[tuple[list[str], str]]:
        """The calls so far: words, and what was read from stdin."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(call[0], call[1]) for call in map(json.loads, lines)]


def check_golden(name: str, text: str, **words: str) -> None:
    """Compares with a file of `golden/`; GOLDEN=write writes it instead.

    Args:
        name: of the file.
        text: what was made.
        **words: parts of it that differ from machine to machine, by what stands for them.
    """
    words |= {"ROOT": str(ROOT), "PYTHON": sys.executable}
    for word, part in sorted(words.items(), key=lambda item: -len(item[1])):
        text = text.replace(part, f"<{word}>")
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
