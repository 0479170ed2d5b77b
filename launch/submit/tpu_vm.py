"""Mode tpu-vm: TPU VMs of the Cloud TPU API, as a new queued resource or an existing VM."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from launch.errors import InputError
from launch.submit import gcloud, tpus
from launch.submit.mode import Mode, Request, check_least, check_processes
from launch.submit.plan import Command, Plan, run
from launch.submit.record import ENDED, Record
from launch.submit.tpu_follow import ABSENT, Follower, hosts_of, look_at_hosts, resource_state

EXTRAS = "tpu,gcs"  # of setup.py, for the hosts
_QUEUED = ("gcloud", "compute", "tpus", "queued-resources")


class TpuVm(Mode):
    """TPU hosts that are reached by ssh."""

    name = "tpu-vm"
    description = "TPU VMs v4 to v6e, requested as a queued resource or already existing"
    examples = (
        (
            "--tpu_type=v4-512 --spot --zone=us-central2-b",
            "python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py "
            "--workdir=gs://my-bucket/if_i_l",
        ),
        (
            "--tpu=my-tpu",
            "python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py "
            "--workdir=gs://my-bucket/if_i_l",
        ),
        (
            "--tpu_type=v5litepod-16 --dry_run",
            "python -m classifiers.train --config=configs/imagenet/resnet50.py "
            "--workdir=gs://my-bucket/resnet50",
        ),
    )
    shared_flag = "--shared=FOLDER"
    gone = ("NOT_FOUND",)
    can_be_followed = True

    def __init__(self, sleep: Callable[[float], Any] = time.sleep):
        self.sleep = sleep

    def define_flags(self, values: flags.FlagValues) -> None:
        """Adds the flags for machines."""
        string = flags.DEFINE_string
        tpus.define_flags(values)
        string("tpu", "", "name of an existing TPU VM, instead of --tpu_type", flag_values=values)
        string(
            "runtime_version",
            "",
            "software version of the hosts, if not the usual one",
            flag_values=values,
        )
        flags.DEFINE_bool("reserved", False, "from the project's reservation", flag_values=values)
        flags.DEFINE_multi_string(
            "create",
            [],
            "an option of `gcloud compute tpus queued-resources create`, such as "
            "--create=--network=lab; may be repeated",
            flag_values=values,
        )
        flags.DEFINE_bool("internal_ip", False, "ssh by the internal address", flag_values=values)
        flags.DEFINE_multi_string(
            "shared",
            [],
            "a folder mounted on all hosts; may be repeated",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "restarts",
            10,
            "after exit code 75, 137 or 143, at most; 10 by default",
            flag_values=values,
        )
        gcloud.define_flags(values)

    def shared(self, request: Request) -> tuple[str, ...]:
        """Mounted folders, as the user names them."""
        return tuple(request.flags.shared)

    def target(self, request: Request) -> str:
        """The slices; empty for an existing TPU VM, whose type is not given."""
        values = request.flags
        if values.tpu:
            return ""
        return tpus.parse(values.tpu_type, values.topology).target(values.num_slices)

    def plan(self, request: Request) -> Plan:
        """All steps of a run in which nothing fails, for the first host of each slice."""
        _check(request)
        resource = _resource(request)
        hosts = hosts_of(request.name, resource)
        create = [Command(tuple(resource["create"]))] if resource["create"] else []
        waits = [Command(tuple(resource["describe"]))] if resource["create"] else hosts.describe()
        first = dataclasses.replace(hosts, counts=(1,) * len(hosts.nodes))
        starts = first.start(0, resource["code"], request.task.argv, request.variables)
        # The code, the machines, their state, the installation, the start, the log.
        return Plan(
            commands=(
                _archive(request, resource),
                *create,
                *waits,
                *hosts.prepare(resource["archive"], EXTRAS),
                *starts,
                hosts.log(to_its_end=True),
            )
        )

    def found_by(self, request: Request) -> dict[str, Any]:
        """What identifies the machines, and creates them again."""
        return _resource(request)

    def start(self, record: Record, request: Request, plan: Plan) -> Record:
        """Archives the code and asks for machines; `follow` does the rest."""
        archive = Path(record.resource["archive"])
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            run(_archive(request, record.resource))
            if record.resource["create"]:
                run(Command(tuple(record.resource["create"])))
            elif resource_state(record) != "ACTIVE":
                raise InputError(
                    f"--tpu={request.flags.tpu} does not exist or is not READY; choose one that is"
                )
        except InputError:
            archive.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # It may hold an earlier job's logs.
                archive.parent.rmdir()
            raise
        return dataclasses.replace(record, state="waiting")

    def follow(self, record: Record, folder: Path) -> int:
        """Waits for machines, starts the job, shows its log, and replaces preempted machines."""
        return Follower(record, folder, self.sleep).run()

    def look(self, record: Record) -> Record:
        """Asks for the state of the machines, then of the hosts."""
        if record.state in ENDED:
            return record
        # 1. The machines.
        state = resource_state(record)
        resource = record.resource | {"machines": state or ABSENT}
        record = dataclasses.replace(record, resource=resource)
        if not state and not resource["is_gone"]:
            return dataclasses.replace(record, state="stopped")
        # 2. The hosts.
        if state == "ACTIVE" and resource["is_prepared"]:
            record = look_at_hosts(record)
        # 3. What only `follow` can do next.
        if state == "SUSPENDED" or record.state in ("starting", "waiting", "submitted"):
            hint = f"{record.resource['machines']}; python -m launch.submit follow {record.name}"
            resource = record.resource | {"machines": f"{hint} continues it if no terminal does"}
            record = dataclasses.replace(record, resource=resource)
        return record

    def logs(self, record: Record) -> Command:
        """The first host's log."""
        return hosts_of(record.name, record.resource).log(to_its_end=False)

    def stop(self, record: Record) -> Plan:
        """Tells the task on every host to save; the machines stay, and cost."""
        if not record.resource["is_prepared"]:
            raise InputError(
                f"{record.name} has not started yet; python -m launch.submit delete "
                f"{record.name} withdraws its request"
            )
        return Plan(commands=tuple(hosts_of(record.name, record.resource).stop()))

    def delete(self, record: Record) -> Plan:
        """Gives the machines back; an existing TPU VM stays."""
        delete = record.resource["delete"]
        return Plan(commands=(Command(tuple(delete)),)) if delete else self.stop(record)


def _check(request: Request) -> None:
    values = request.flags
    tpus.check_given(values.tpu_type)
    # 1. New machines or an existing TPU VM, not both.
    if bool(values.tpu) == bool(values.tpu_type):
        raise InputError(f"the machines are missing; pass --tpu_type={tpus.SYNTAX}, or --tpu=NAME")
    check_least(values, num_slices=1, restarts=0)
    creates = (values.spot, values.reserved, values.topology, values.create, values.num_slices > 1)
    if values.tpu and any(creates):
        raise InputError(
            "--spot, --reserved, --topology, --create and --num_slices are for new "
            "machines, not for --tpu; leave them out"
        )
    if values.spot and values.reserved:
        raise InputError("--spot and --reserved exclude each other; pass only one of them")
    # 2. A slice that exists; this mode asks for unusual topologies of v4 only.
    if not values.tpu:
        tpu = tpus.parse(values.tpu_type, values.topology)
        usual = tpus.usual_topology(tpu.chips, tpu.generation) == tpu.topology
        if not usual and tpu.generation.name != "v4":
            raise InputError(
                f"--topology={values.topology} needs --tpu_type=v4-...; leave it out for others"
            )
        check_processes(request.task, values.num_slices * tpu.hosts, 0)


def _resource(request: Request) -> dict[str, Any]:
    """What identifies the job and creates its machines again; saved in its record."""
    values = request.flags
    project = gcloud.setting("project", values.project)
    place = (f"--project={project}", f"--zone={gcloud.setting('zone', values.zone)}")
    name, count = request.name, values.num_slices
    # Names of a queued resource's nodes: --node-id, or --node-prefix with a number.
    nodes = [values.tpu] if values.tpu else [name]
    if count > 1:
        nodes = [f"{name}-{number}" for number in range(count)]
    delete = (*_QUEUED, "delete", name, *place, "--force", "--quiet")
    return dict(
        nodes=nodes,
        place=place,
        ssh=("--internal-ip",) if values.internal_ip else (),
        counts=(),
        create=() if values.tpu else (*_QUEUED, "create", name, *place, *_machines(request)),
        describe=(*_QUEUED, "describe", name, *place, "--format=value(state.state)"),
        delete=() if values.tpu else delete,
        code=request.checkout.commit,
        archive=str(request.folder / name / "code.tar.gz"),
        extras=EXTRAS,
        variables=request.variables,
        restarts=values.restarts,
        is_prepared=False,
        is_gone=False,
        machines="asked for",
    )


def _machines(request: Request) -> tuple[str, ...]:
    """The flags that describe the machines."""
    values = request.flags
    tpu = tpus.parse(values.tpu_type, values.topology)
    # An accelerator type implies the usual topology; others need --type and --topology.
    if tpus.usual_topology(tpu.chips, tpu.generation) == tpu.topology:
        kind: tuple[str, ...] = (f"--accelerator-type={tpu.accelerator_type}",)
    else:
        kind = (f"--type={tpu.generation.name}", f"--topology={tpu.shape}")
    node: tuple[str, ...] = (f"--node-id={request.name}",)
    if values.num_slices > 1:
        node = (f"--node-count={values.num_slices}", f"--node-prefix={request.name}")
    version = values.runtime_version or tpu.generation.runtime
    paid = ("--spot",) if values.spot else ("--reserved",) if values.reserved else ()
    return (*node, *kind, f"--runtime-version={version}", *paid, "--quiet", *values.create)


def _archive(request: Request, resource: dict[str, Any]) -> Command:
    git = ("git", "-C", str(request.checkout.root), "archive", "--format=tar.gz")
    archive = Path(resource["archive"]).absolute()
    return Command((*git, f"--output={archive}", request.checkout.commit))
