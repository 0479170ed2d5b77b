"""What the restarts of a run have cost, as its attempts write it down in `goodput.jsonl`.

An attempt is one start of a command. A line says all of an attempt up to then, so the last whole
one counts, and what is left of one that was being written when the process was killed is passed
over. Lines are written at the first step, at every checkpoint, at the end, and as steps or
evaluations begin, if the line before is a second old (in a long attempt a hundredth of its time).
Behind the step at which the attempt before was killed, every step that begins is written down.

A run is given up when three attempts in a row have ended badly at the same step, and no checkpoint
has that step. Badly is: with exit code 1, of which the step is known; or without a word, killed,
after a first step was made, for before that it can be anybody's fault. Of the first kill the step
may be known roughly only: if its line does not name the very step of the later ones, a fourth
attempt is needed. Whoever was preempted, interrupted, or had wrong input or a full disk breaks the
row. The next start ends with exit code 1, which no scheduler starts again; when the file is
removed, all is counted afresh.
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
# What the seconds of an attempt are spent on, and how a summary calls it.
KINDS = {
    "startup": "start-up",
    "restore": "restoring",
    "compile": "compiling",
    PRODUCTIVE: "steps",
    "repeated": "steps made again",
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
# Before the first step is made.
_EARLY = ("startup", "restore", "compile")
_ATTEMPTS = 3
# A unit is used up to a hundred of it.
_UNITS = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0))


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of a command that trains.

    Attributes:
        number: from 1.
        process: a name that no other process has.
        began: when, in seconds since 1970.
        seconds: by kind of work, see `KINDS`.
        first_step: the first that it had to make.
        last_step: the last that it is known to have begun; the one before the first if none.
        doing: the kind of work that it was last known to be at.
        end: done, preempted, diverged, failed or interrupted; None if it has not written its end:
            it was killed, or is still at work.
        exit_code: of its process, as far as training decides about that; None as `end`.
        error: what it failed of.
    """

    number: int
    process: str
    began: float
    seconds: dict[str, float]
    first_step: int
    last_step: int
    doing: str
    end: str | None = None
    exit_code: int | None = None
    error: str = ""

    def to_line(self) -> str:
        """As it stands in the file."""
        seconds = {kind: round(x, 3) for kind, x in self.seconds.items() if x}
        fields = dataclasses.asdict(self) | {"seconds": seconds}
        return json.dumps({name: x for name, x in fields.items() if x not in (None, "")}) + "\n"


def read_attempts(folder: epath.PathLike) -> list[Attempt]:
    """The attempts of a run, in their order; the same process in several seeds is one of them.

    Args:
        folder: the run directory.
    """
    folder = epath.Path(folder)
    if own := read_run(folder):
        return own
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
    """The attempts of one training, without a look at the folders in its own."""
    try:
        lines = (epath.Path(folder) / GOODPUT).read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    attempts = filter(None, map(_parse, lines[:-1]))
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
    """What one process did in several folders: its end is that of the last one."""
    parts = sorted(parts, key=operator.attrgetter("began"))
    seconds = {kind: x for kind, x in _by_kind(parts).items() if x}
    return dataclasses.replace(parts[-1], began=parts[0].began, seconds=seconds)


def productive(attempts: Iterable[Attempt]) -> float:
    """The share of the attempts' time, in [0, 1], in which steps were made for the first time."""
    seconds = _by_kind(attempts)
    return seconds[PRODUCTIVE] / (sum(seconds.values()) or 1.0)


def summary(attempts: Sequence[Attempt]) -> str:
    """One line: how much of which time was productive, and what the rest was spent on."""
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
    """The step at which a run is given up, see above; None while it may go on.

    Args:
        attempts: all there were, none of which is at work.
        newest: the step of the newest checkpoint, 0 if there is none.
    """
    last = attempts[-_ATTEMPTS:]
    steps = {attempt.last_step for attempt in last}
    if len(last) < _ATTEMPTS or len(steps) > 1 or not all(map(ended_badly, last)):
        return None
    (step,) = steps
    return step if newest < step else None


def ended_badly(attempt: Attempt) -> bool:
    """Whether an attempt that is not at work any more has itself to blame, as far as one knows."""
    if attempt.end is None:
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
