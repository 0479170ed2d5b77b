"""What restarts cost a run: each attempt, one start of a command, writes to `goodput.jsonl`.

Each line describes an attempt up to then, so its last complete line counts; a line that a kill cut
off is ignored. Lines are written at the first step, at every checkpoint, at the end, and as steps
or evaluations begin if the last line is older than a second (in a long attempt, a hundredth of its
time). Past the step at which the previous attempt was killed, every step writes one as it begins.

A run is given up when three attempts in a row end badly at the same step and no checkpoint has
that step. An attempt ends badly with exit code 1 and a known step, or if it is killed silently
after its first step; anything can be at fault before that. The step of a first kill may be known
only roughly: if it differs from that of the next two, a fourth attempt is needed. A preemption, an
interrupt, wrong input or a full disk starts the count again. A run that is given up exits with
code 1, which no scheduler restarts; delete the file to reset the count.
"""

import dataclasses
import json
import operator
from collections import Counter
from collections.abc import Iterable, Sequence

from etils import epath

from launch.folders import entries

GOODPUT = "goodput.jsonl"
PRODUCTIVE = "steps"
# What an attempt spends its seconds on, with the words for it in a summary.
KINDS = {
    "startup": "start-up",
    "restore": "restoring",
    "compile": "compiling",
    PRODUCTIVE: "steps",
    "repeated": "repeated steps",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "pictures": "pictures",
    "checkpoint": "checkpoints",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "number": (int,),
    "process": (str,),
    "began": (int, float),
    "seconds": (dict,),
    "first_step": (int,),
    "last_step": (int,),
    "doing": (str,),
    "end": (str,),
    "exit_code": (int,),
    "error": (str,),
}
_NEEDED = _TYPES.keys() - {"end", "exit_code", "error"}
# Work that comes before the first step.
_EARLY = ("startup", "restore", "compile")
_ATTEMPTS = 3  # in a row, at one step, before a run is given up
# A duration is printed in the first unit that keeps it below a hundred.
_UNITS = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0))


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of a command that trains."""

    number: int  # from 1
    process: str  # a name that no other process has
    began: float  # seconds since 1970
    seconds: dict[str, float]  # by kind of work, a key of KINDS
    first_step: int  # the first step that it had to make
    last_step: int  # the last step known to have begun; first_step - 1 if none
    doing: str  # the kind of work that it was last known to do
    # done, preempted, diverged, failed or interrupted; None if it was killed or is still running.
    end: str | None = None
    exit_code: int | None = None  # as training decides it; None as `end`
    error: str = ""  # why it failed

    def to_line(self) -> str:
        """The line for the file."""
        seconds = {kind: round(x, 3) for kind, x in self.seconds.items() if x}
        fields = dataclasses.asdict(self) | {"seconds": seconds}
        return json.dumps({name: x for name, x in fields.items() if x not in (None, "")}) + "\n"


def read_attempts(folder: epath.PathLike) -> list[Attempt]:
    """The attempts of a run directory, in order; seeds trained by one process count as one."""
    folder = epath.Path(folder)
    if own := read_run(folder):
        return own
    # A run of several seeds has a folder for each. The k-th attempts of one process in all these
    # folders are one start of the command.
    parts: dict[tuple[str, int], list[Attempt]] = {}
    for part in entries(folder):
        times: Counter[str] = Counter()
        for attempt in read_run(part):
            times[attempt.process] += 1
            key = attempt.process, times[attempt.process]
            parts.setdefault(key, []).append(attempt)
    joined = sorted(map(_join, parts.values()), key=operator.attrgetter("began"))
    return [dataclasses.replace(one, number=n) for n, one in enumerate(joined, start=1)]


def read_run(folder: epath.PathLike) -> list[Attempt]:
    """The attempts of one training; does not look into folders below."""
    try:
        lines = (epath.Path(folder) / GOODPUT).read_bytes().split(b"\n")
    # The last part has no line end: it is empty, or what a killed process was writing.
    except (FileNotFoundError, NotADirectoryError):
        return []
    attempts = filter(None, map(_parse, lines[:-1]))
    # Later lines replace earlier ones of the same attempt.
    return list({attempt.number: attempt for attempt in attempts}.values())


def _parse(line: bytes) -> Attempt | None:
    try:
        fields = json.loads(line)
        kinds = {name: type(x) for name, x in fields.items()}
        seconds = [fields["began"], *fields["seconds"].values()]
        is_sound = kinds.keys() <= _TYPES.keys() and _NEEDED <= kinds.keys()
        is_sound = is_sound and all(kind in _TYPES[name] for name, kind in kinds.items())
        is_sound = is_sound and all(type(x) in (int, float) and x >= 0 for x in seconds)
        is_sound = is_sound and fields["seconds"].keys() <= KINDS.keys()
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return Attempt(**fields) if is_sound else None


def _join(parts: Sequence[Attempt]) -> Attempt:
    """Joins what one process did in several folders; it ended as the last of them did."""
    parts = sorted(parts, key=operator.attrgetter("began"))
    seconds = {kind: x for kind, x in _by_kind(parts).items() if x}
    return dataclasses.replace(parts[-1], began=parts[0].began, seconds=seconds)


def productive(attempts: Iterable[Attempt]) -> float:
    """The share of all attempts' time, in [0, 1], spent on making steps for the first time."""
    seconds = _by_kind(attempts)
    return seconds[PRODUCTIVE] / (sum(seconds.values()) or 1.0)


def summary(attempts: Sequence[Attempt]) -> str:
    """One line: which share of the time was productive, and what took the rest."""
    if not attempts:
        return "no attempt has trained yet"
    seconds = _by_kind(attempts)
    total = sum(seconds.values()) or 1.0
    shares = {kind: x / total for kind, x in seconds.items() if kind != PRODUCTIVE}
    rest = [f"{KINDS[kind]} {share:.0%}" for kind, share in shares.items() if share >= 0.005]
    count = f"{len(attempts)} attempt{'s' if attempts[1:] else ''}"
    line = f"productive {seconds[PRODUCTIVE] / total:.0%} of {_duration(total)} in {count}"
    return f"{line}: {', '.join(rest)}" if rest else line


def stuck_at(attempts: Sequence[Attempt], newest: int) -> int | None:
    """The step at which a run is given up, by the module's rule; None if it may continue.

    No attempt may be running; `newest` is the step of the newest checkpoint, 0 for none.
    """
    last = attempts[-_ATTEMPTS:]
    steps = {attempt.last_step for attempt in last}
    if len(last) < _ATTEMPTS or len(steps) > 1 or not all(map(ended_badly, last)):
        return None
    (step,) = steps
    return step if newest < step else None


def ended_badly(attempt: Attempt) -> bool:
    """Whether an attempt that is no longer running failed through its own fault, probably."""
    if attempt.end is None:
        # It got past its first step, or was still at that step but neither starting nor compiling.
        return attempt.last_step > attempt.first_step or (
            attempt.last_step == attempt.first_step and attempt.doing not in _EARLY
        )
    return attempt.exit_code == 1


def _by_kind(attempts: Iterable[Attempt]) -> dict[str, float]:
    seconds = dict.fromkeys(KINDS, 0.0)
    for attempt in attempts:
        for kind, x in attempt.seconds.items():
            seconds[kind] += x
    return seconds


def _duration(seconds: float) -> str:
    unit, length = next((u for u in _UNITS if seconds < 100 * u[1]), _UNITS[-1])
    amount = seconds / length
    return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
