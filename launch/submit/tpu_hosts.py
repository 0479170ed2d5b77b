"""What runs on the hosts of TPU VMs, through gcloud's ssh.

On every host a job has the folder imagen-ft-jobs/NAME in the user's home, with code/, venv/, `log`,
`pid` (its process group and the id of the boot), `attempt`, later `exit` (the exit code), and
`stopped` if somebody has asked it to stop.
"""

import concurrent.futures
import dataclasses
import json
import shlex
from collections.abc import Sequence

from launch.submit.plan import Command, run

FOLDER = "imagen-ft-jobs"
# Says, in messages, that a host is in use.
TAKEN = "runs on this host"
# gcloud processes at a time.
_AT_ONCE = 16
# A shell function: are processes of the job in folder $1 running, in this boot of the machine?
_ALIVE = """alive() {
  [ -f "$1/pid" ] && read -r pid boot <"$1/pid" &&
    [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] && kill -0 -- "-$pid" 2>/dev/null
}
"""
# $1: the folder.
_BEGIN = f"""{_ALIVE}for other in {FOLDER}/*; do
  if alive "$other"; then
    echo "error: the job ${{other##*/}} {TAKEN}: stop it first" >&2
    exit 2
  fi
done
rm -rf "$1" && mkdir -p "$1"
"""
# $1: the folder, $2: extras of setup.py. The system's Python is too old for us.
_INSTALL = """set -euo pipefail
cd "$1"
PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
rm -rf code venv && mkdir code && tar -xzf code.tar.gz -C code
uv venv --quiet --python 3.12 venv
uv pip install --quiet --python venv/bin/python "./code[$2]"
"""
# $1: the folder, $2: the attempt, $3: the commit, then the command line; stdin has the task's
# variables as lines NAME=value. The outer shell survives SIGTERM, to record the task's exit code.
# Processes left by the attempt before, such as data-loading workers, still hold the chips.
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
# $1: the folder. A host that was rebooted has lost its processes without an exit code.
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
# Ends when the job does.
_FOLLOW = 'read -r pid boot <"$1/pid" && tail -n 100 --pid="$pid" -F "$1/log"'


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The hosts of a job."""

    job: str  # its name
    place: tuple[str, ...]  # flags of every gcloud command: project and zone
    nodes: tuple[str, ...]  # names of its TPUs, one per slice
    counts: tuple[int, ...] = ()  # hosts of each slice; empty until known
    ssh: tuple[str, ...] = ()  # additional flags of ssh and scp

    def describe(self) -> list[Command]:
        """Commands that print the state and hosts of each TPU, as JSON."""
        words = ("gcloud", "compute", "tpus", "tpu-vm", "describe")
        form = "--format=json(state,networkEndpoints)"
        return [Command((*words, node, *self.place, form)) for node in self.nodes]

    def counted(self) -> "Hosts":
        """The same hosts, with `counts` as gcloud reports them now."""
        described = [json.loads(run(command)) for command in self.describe()]
        counts = tuple(len(node["networkEndpoints"]) for node in described)
        return dataclasses.replace(self, counts=counts)

    def prepare(self, archive: str, extras: str) -> list[Command]:
        """Commands that copy the code, a local archive, to all hosts and install it."""
        scp = ("gcloud", "compute", "tpus", "tpu-vm", "scp", archive)
        copies = [
            Command((*scp, f"{node}:{FOLDER}/{self.job}/code.tar.gz", *self._flags("all")))
            for node in self.nodes
        ]
        return [*self._everywhere(_BEGIN), *copies, *self._everywhere(_INSTALL, extras)]

    def start(
        self, attempt: int, commit: str, argv: Sequence[str], variables: Sequence[str]
    ) -> list[Command]:
        """Commands, one per host with a stdin of its own, that start the task detached from ssh.

        `attempt` counts earlier starts; `variables` are names of environment variables.
        """
        return [
            self._ssh(node, str(worker), _START, str(attempt), commit, *argv, variables=variables)
            for node, count in zip(self.nodes, self.counts, strict=True)
            for worker in range(count)
        ]

    def look(self) -> list[Command]:
        """Commands that print a line on the job from each host, for `told`."""
        return self._everywhere(_LOOK)

    def stop(self) -> list[Command]:
        """Commands that tell the task on every host to save and exit."""
        return self._everywhere(_STOP)

    def log(self, to_its_end: bool) -> Command:
        """The command that follows the first host's log, for ever or to the end of the job."""
        script = _FOLLOW if to_its_end else _LOG
        # A preempted host does not close its connections, so ssh must notice by itself.
        alive = ("--ssh-flag=-oServerAliveInterval=30",)
        return dataclasses.replace(self, ssh=(*self.ssh, *alive))._ssh(self.nodes[0], "0", script)

    def _everywhere(self, script: str, *words: str) -> list[Command]:
        return [self._ssh(node, "all", script, *words) for node in self.nodes]

    def _ssh(
        self, node: str, worker: str, script: str, *words: str, variables: Sequence[str] = ()
    ) -> Command:
        # gcloud passes the text to ssh, and ssh to the login shell of the host: quote it once.
        line = shlex.join(("bash", "-c", script, "job", f"{FOLDER}/{self.job}", *words))
        argv = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *self._flags(worker))
        return Command((*argv, f"--command={line}"), variables=tuple(variables))

    def _flags(self, worker: str) -> tuple[str, ...]:
        checks = ("--quiet", "--strict-host-key-checking=no")
        return (f"--worker={worker}", *self.place, *checks, *self.ssh)


def told(printed: Sequence[str]) -> list[tuple[str, ...]]:
    """Parses what the hosts printed for `Hosts.look`.

    Each entry is ("none",), ("running",), or ("ended" or "stopped", exit code, attempt).
    """
    lines = [line for text in printed for line in text.splitlines()]
    return [tuple(line.split()[1:]) for line in lines if line.startswith("job: ")]


def run_all(commands: Sequence[Command]) -> list[str]:
    """Runs commands at the same time; returns their outputs. Raises `InputError` if one failed."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(run, commands))
