"""Hosts of TPU VMs: what is run on them, through gcloud's ssh, and where their job lies.

A job has the folder imagen-ft-jobs/NAME of the user's home on every host: code/ and venv/, `log`,
`pid` (of its group of processes, and the boot that this was in), `attempt`, then `exit` with the
exit code, and `stopped` where somebody has asked it to leave.
"""

import concurrent.futures
import dataclasses
import json
import shlex
from collections.abc import Sequence

from launch.submit.plan import Command, run

FOLDER = "imagen-ft-jobs"
# What is said of a host that is not free.
TAKEN = "runs on this host"
# gcloud processes at once.
_AT_ONCE = 16
# Whether the processes of the job in a folder are there.
_ALIVE = """alive() {
  [ -f "$1/pid" ] && read -r pid boot <"$1/pid" &&
    [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] && kill -0 -- "-$pid" 2>/dev/null
}
"""
# Folder.
_BEGIN = f"""{_ALIVE}for other in {FOLDER}/*; do
  if alive "$other"; then
    echo "error: the job ${{other##*/}} {TAKEN}: stop it first" >&2
    exit 2
  fi
done
rm -rf "$1" && mkdir -p "$1"
"""
# Folder, extras. The system's Python is older than ours.
_INSTALL = """set -euo pipefail
cd "$1"
PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
rm -rf code venv && mkdir code && tar -xzf code.tar.gz -C code
uv venv --quiet --python 3.12 venv
uv pip install --quiet --python venv/bin/python "./code[$2]"
"""
# Folder, attempt, commit, command line; lines NAME=value from stdin are variables of the task. The
# outer shell of the task outlives SIGTERM, to note how the task has ended. What is left of the
# attempt before it, such as a worker of its input pipeline, holds the chips.
_START = f"""set -eu
{_ALIVE}while IFS= read -r line; do export "$line"; done
cd "$1"
if alive . && [ ! -f exit ]; then echo "error: the job ${{1##*/}} {TAKEN} already" >&2; exit 2; fi
if alive .; then kill -KILL -- "-$pid"; fi
if [ -O /tmp/libtpu_lockfile ]; then rm -f /tmp/libtpu_lockfile; fi
rm -f exit stopped pid
echo "$2" >attempt
export PATH="$PWD/venv/bin:$PATH" PYTHONUNBUFFERED=1 IMAGEN_FT_COMMIT="$3"
shift 3
echo "$$ starts: $*" >>log
setsid bash -c '
  trap : TERM HUP INT
  echo "$$ $(cat /proc/sys/kernel/random/boot_id)" >pid
  cd code
  "$@"
  echo "$?" >../exit.part
  mv ../exit.part ../exit
' job "$@" </dev/null >>log 2>&1 &
until [ -s pid ]; do sleep 0.1; done
"""
# Folder. A host that was started anew has lost its processes without an exit code.
_LOOK = f"""{_ALIVE}cd "$1" 2>/dev/null || {{ echo "job: none"; exit 0; }}
word=ended
if [ -f stopped ]; then word=stopped; fi
if [ -f exit ]; then echo "job: $word $(cat exit) $(cat attempt)"
elif alive .; then echo "job: running"
elif [ -f pid ]; then echo "job: $word 137 $(cat attempt)"
else echo "job: none"; fi
"""
_STOP = f"""{_ALIVE}cd "$1" && touch stopped && if alive .; then kill -TERM -- "-$pid"; fi
"""
_LOG = 'tail -n 100 -F "$1/log"'
# Ends with the job.
_FOLLOW = 'read -r pid boot <"$1/pid" && tail -n 100 --pid="$pid" -F "$1/log"'


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The hosts of a job.

    Attributes:
        job: its name.
        place: flags of every command of gcloud: project and zone.
        nodes: names of its TPUs, a slice each.
        counts: hosts of each; empty until they are known.
        ssh: more flags of ssh and scp.
    """

    job: str
    place: tuple[str, ...]
    nodes: tuple[str, ...]
    counts: tuple[int, ...] = ()
    ssh: tuple[str, ...] = ()

    def describe(self) -> list[Command]:
        """Commands that print as JSON the state and the hosts of each TPU."""
        words = ("gcloud", "compute", "tpus", "tpu-vm", "describe")
        form = "--format=json(state,networkEndpoints)"
        return [Command((*words, node, *self.place, form)) for node in self.nodes]

    def counted(self) -> "Hosts":
        """These, with their numbers as they are."""
        described = [json.loads(run(command)) for command in self.describe()]
        counts = tuple(len(node["networkEndpoints"]) for node in described)
        return dataclasses.replace(self, counts=counts)

    def prepare(self, archive: str, extras: str) -> list[Command]:
        """What brings the code to all hosts, from a file of this machine, and installs it."""
        scp = ("gcloud", "compute", "tpus", "tpu-vm", "scp", archive)
        copies = [
            Command((*scp, f"{node}:{FOLDER}/{self.job}/code.tar.gz", *self._flags("all")))
            for node in self.nodes
        ]
        return [*self._everywhere(_BEGIN), *copies, *self._everywhere(_INSTALL, extras)]

    def start(
        self, attempt: int, commit: str, argv: Sequence[str], variables: Sequence[str]
    ) -> list[Command]:
        """What starts the task on each host, so that it outlives us; each has a stdin of its own.

        Args:
            attempt: how often it was started before.
            commit: of the code.
            argv: the task's command line.
            variables: of the environment, by name.
        """
        return [
            self._ssh(node, str(worker), _START, str(attempt), commit, *argv, variables=variables)
            for node, count in zip(self.nodes, self.counts, strict=True)
            for worker in range(count)
        ]

    def look(self) -> list[Command]:
        """What asks each host for a line on the job (`told`)."""
        return self._everywhere(_LOOK)

    def stop(self) -> list[Command]:
        """What tells the task on every host to save and leave."""
        return self._everywhere(_STOP)

    def log(self, to_its_end: bool) -> Command:
        """What prints the first host's log, and follows it: to the end of the job, or for ever."""
        script = _FOLLOW if to_its_end else _LOG
        # A host that was taken away does not close its connections.
        alive = ("--ssh-flag=-oServerAliveInterval=30",)
        return dataclasses.replace(self, ssh=(*self.ssh, *alive))._ssh(self.nodes[0], "0", script)

    def _everywhere(self, script: str, *words: str) -> list[Command]:
        return [self._ssh(node, "all", script, *words) for node in self.nodes]

    def _ssh(
        self, node: str, worker: str, script: str, *words: str, variables: Sequence[str] = ()
    ) -> Command:
        # gcloud hands the text to ssh, and ssh to the user's shell there: it is quoted once.
        line = shlex.join(("bash", "-c", script, "job", f"{FOLDER}/{self.job}", *words))
        argv = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *self._flags(worker))
        return Command((*argv, f"--command={line}"), variables=tuple(variables))

    def _flags(self, worker: str) -> tuple[str, ...]:
        checks = ("--quiet", "--strict-host-key-checking=no")
        return (f"--worker={worker}", *self.place, *checks, *self.ssh)


def told(printed: Sequence[str]) -> list[tuple[str, ...]]:
    """What the hosts have said when they were asked by `Hosts.look`.

    Returns:
        ("none",), ("running",), or ("ended" or "stopped", exit code, attempt), of each.
    """
    lines = [line for text in printed for line in text.splitlines()]
    return [tuple(line.split()[1:]) for line in lines if line.startswith("job: ")]


def run_all(commands: Sequence[Command]) -> list[str]:
    """Runs commands at once; returns what each has printed.

    Raises:
        InputError: one has failed.
    """
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(run, commands))
