"""Follows a job on TPU VMs from the request for machines to the end of its last attempt."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.cli import say
from launch.errors import PREEMPTED, InputError
from launch.submit.mode import check_variables
from launch.submit.plan import Command, run, stream
from launch.submit.processes import GOES_ON
from launch.submit.record import ENDED, Record
from launch.submit.tpu_hosts import TAKEN, Hosts, run_all, told

# Seconds between looks, seconds between the log's end and the exit codes, failures in a row.
WAIT_SECONDS, END_SECONDS, TRIES = 30.0, 5.0, 5
# States in which to wait: machines will come, or must be gone before new ones are created.
_COMING = (
    "CREATING",
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "SUSPENDING",
    "DELETING",
)
ABSENT = "not there"
# The same for a single TPU VM.
_COMING_NODE = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING")


def hosts_of(name: str, resource: dict[str, Any]) -> Hosts:
    """A job's hosts, from its record."""
    fields = {key: tuple(resource[key]) for key in ("place", "nodes", "counts", "ssh")}
    return Hosts(name, **fields)


def resource_state(record: Record) -> str:
    """The state of a job's queued resource, or ACTIVE for an existing TPU VM that is ready.

    '' if there is none.
    """
    if record.resource["create"]:
        return run(Command(tuple(record.resource["describe"])), ("NOT_FOUND",)).strip()
    [command] = hosts_of(record.name, record.resource).describe()
    state = json.loads(run(command, ("NOT_FOUND",)) or '{"state": ""}')["state"]
    return "ACTIVE" if state == "READY" else "PROVISIONING" if state in _COMING_NODE else state


def look_at_hosts(record: Record) -> Record:
    """The record after asking all hosts, on which the job has been started, for its state."""
    lines = told(run_all(hosts_of(record.name, record.resource).look()))
    # 1. One host without the job means new machines: install and start again.
    words = {line[0] for line in lines}
    if "none" in words:
        resource = record.resource | {"is_prepared": False}
        return dataclasses.replace(record, state="waiting", resource=resource)
    # 2. While one process runs, the job does.
    if "running" in words:
        return dataclasses.replace(record, state="running")
    # 3. All have ended: the job's code is one that a restart would not help, if there is one.
    codes = [int(line[1]) for line in lines]
    failures = [code for code in codes if code]
    lasting = [code for code in failures if code not in GOES_ON]
    code = (lasting or failures or [0])[0]
    attempt = max(int(line[2]) for line in lines)
    state = "done" if code == 0 else "preempted" if code == PREEMPTED else "failed"
    if code and "stopped" in words:
        state = "stopped"
    elif code in GOES_ON and attempt < record.resource["restarts"]:
        state = "submitted"  # It will be started again.
    # A second look at the same end must not add the code twice: `attempt` counts from 0.
    return dataclasses.replace(record, state=state, exit_codes=[*record.exit_codes[:attempt], code])


class Follower:
    """A terminal that stays with a job; `record` is the job's current record."""

    def __init__(self, record: Record, folder: Path, sleep: Callable[[float], Any]):
        self.record = record
        self._folder = folder
        self._sleep = sleep
        self._said = ""

    def run(self) -> int:
        """Runs until the job has ended; returns its exit code.

        Raises `InputError` if something fails TRIES times in a row; the job and its machines stay.
        """
        check_variables(tuple(self.record.resource["variables"]))
        failures = 0
        while self.record.state not in ENDED:
            if not self.record.has_name(self._folder):
                # The machines have the job's name, so they are the later job's now.
                say(f"{self.record.name}: a later job has this name; leaving this one")
                return 1
            try:
                self._step()
                failures = 0
            except InputError as error:
                failures += 1
                # Machines that were just created, or are about to go, do not answer ssh.
                if failures == TRIES or TAKEN in str(error):
                    raise InputError(f"{error}; {self._left()}") from error
                say(f"{self.record.name}: {error}: trying again")
                self._sleep(WAIT_SECONDS)
            except KeyboardInterrupt:
                say(f"{self.record.name}: {self._left()}")
                raise
        # Its end, and what still costs money.
        codes = [code for code in self.record.exit_codes[-1:] if code]
        is_there = self.record.resource["delete"] and self.record.resource["machines"] != ABSENT
        say(f"{self.record.name}: {self.record.state}{f'; {self._left()}' if is_there else ''}")
        return 0 if self.record.state == "done" else (codes or [1])[0]

    def _left(self) -> str:
        """Tells a user whose machines are still there what to do."""
        command, name = "python -m launch.submit", self.record.name
        goes_on = "" if self.record.state in ENDED else f"{command} follow {name} resumes, "
        if not self.record.resource["delete"]:
            return f"{goes_on}{command} stop {name} ends the job"
        return (
            "its machines, or the request for them, still exist and cost money: "
            f"{goes_on}{command} delete {name} gives them back"
        )

    def _keep(self, resource: dict[str, Any] | None = None, **changes: Any) -> None:
        resource = self.record.resource | (resource or {})
        self.record = self.record.with_(self._folder, resource=resource, **changes)

    def _step(self) -> None:
        # 1. The machines.
        state = resource_state(self.record)
        if state != self._said:
            say(f"{self.record.name}: its machines are {state or ABSENT}")
            self._said = state
        self._keep({"machines": state or ABSENT})
        # 2. Work, wait, replace them or give up.
        if state == "ACTIVE":
            self._work()
        elif state in _COMING:
            self._sleep(WAIT_SECONDS)
        elif self.record.resource["is_gone"] or (
            state == "SUSPENDED" and self.record.resource["delete"]
        ):
            self._make_anew()
        elif not state:
            self._keep(state="stopped")
        else:
            why = shlex.join(self.record.resource["describe"][:-1])
            say(f"{self.record.name}: see {why} for why they are {state}")
            self._keep(state="failed")

    def _make_anew(self) -> None:
        """Asks for machines again: spot machines that were preempted never come back."""
        # `is_gone` is saved first: if this terminal ends before the request, `follow` repeats it.
        self._keep({"is_prepared": False, "is_gone": True}, state="waiting")
        run(Command(tuple(self.record.resource["delete"])), ("NOT_FOUND",))
        run(Command(tuple(self.record.resource["create"])))
        self._keep({"is_gone": False})
        say(f"{self.record.name}: the machines were taken away; asking for new ones")

    def _work(self) -> None:
        """Installs and starts the job, or shows its log, or restarts it."""
        resource = self.record.resource
        # 1. New machines.
        if not resource["is_prepared"]:
            hosts = hosts_of(self.record.name, resource).counted()
            say(f"{self.record.name}: installing the code on {sum(hosts.counts)} hosts")
            for command in hosts.prepare(resource["archive"], resource["extras"]):
                run(command)
            self._keep({"counts": list(hosts.counts)})
            self._start(hosts)
            return
        # 2. Machines that have the job: see how it is.
        hosts = hosts_of(self.record.name, resource)
        record = look_at_hosts(self.record)
        self._keep(record.resource, state=record.state, exit_codes=record.exit_codes)
        if record.state == "running":
            # The log ends with the process; its exit code is written a moment later.
            stream(hosts.log(to_its_end=True))
            self._sleep(END_SECONDS)
        elif record.state == "submitted":
            say(f"{self.record.name}: exit code {record.exit_codes[-1]}; restarting")
            self._start(hosts)

    def _start(self, hosts: Hosts) -> None:
        record = self.record
        run_all(
            hosts.start(
                len(record.exit_codes),
                record.resource["code"],
                record.command,
                record.resource["variables"],
            )
        )
        attempts = len(record.exit_codes) + 1
        self._keep({"is_prepared": True}, state="running", attempts=attempts)
