"""Mode gke: pods of a Kubernetes cluster, as a JobSet."""

import dataclasses
import json
import re
from typing import Any

import yaml
from absl import flags

from launch.cli import say
from launch.errors import InputError
from launch.submit import gcloud, tpus
from launch.submit.gke_tools import other_tool
from launch.submit.jobset import JOB, MANAGER, PORT, QUEUE, Pods, manifest
from launch.submit.mode import Mode, Request, check_least, check_processes
from launch.submit.plan import Command, Plan, TextFile, run
from launch.submit.processes import GOES_ON
from launch.submit.record import ENDED, Record

# Values of GKE's node label cloud.google.com/gke-accelerator.
GPUS = {
    "l4": "nvidia-l4",
    "a100": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h100-mega": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
# How kubectl says that an object does not exist.
_MISSING = ("(NotFound)",)
_SELECTOR = "jobset.sigs.k8s.io/jobset-name={name}"
_FIRST = ",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"


class Gke(Mode):
    """A JobSet, with one Job per TPU slice and one pod per host."""

    name = "gke"
    description = "pods of a Kubernetes cluster, with TPU slices or GPUs, by a JobSet"
    examples = (
        (
            "--tpu_type=v4-512 --image=docker.io/me/imagen-ft --spot",
            "python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py "
            "--workdir=gs://my-bucket/if_i_l",
        ),
        (
            "--nodes=2 --gpus=8 --gpu_type=h100 --image=docker.io/me/imagen-ft",
            "python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py "
            "--workdir=gs://my-bucket/if_i_l",
        ),
        (
            "--tpu_type=v6e-8 --image=docker.io/me/imagen-ft --dry_run",
            "python -m classifiers.train --config=configs/imagenet/resnet50.py "
            "--workdir=gs://my-bucket/resnet50",
        ),
    )
    shared_flag = "--mount=gs://BUCKET:FOLDER"
    gone = _MISSING

    def define_flags(self, values: flags.FlagValues) -> None:
        """Adds the flags for machines, image and cluster."""
        string, integer = flags.DEFINE_string, flags.DEFINE_integer
        tpus.define_flags(values)
        integer("host_chips", 0, "of TPU hosts; by default 4, or 1 of one chip", flag_values=values)
        integer("gpus", 0, "of a host, instead of TPUs", flag_values=values)
        flags.DEFINE_enum("gpu_type", "h100", sorted(GPUS), "of --gpus", flag_values=values)
        integer("nodes", 1, "hosts with GPUs", flag_values=values)
        string(
            "image", "", "that has the code: launch/submit/Dockerfile builds it", flag_values=values
        )
        # An image knows its commit only if it was built with launch/submit/Dockerfile.
        flags.DEFINE_bool(
            "check_image",
            True,
            "whether pods stop if the image has another commit than this checkout; "
            "--nocheck_image for images without a commit",
            flag_values=values,
        )
        flags.DEFINE_multi_string(
            "mount",
            [],
            "gs://BUCKET[/FOLDER]:/PATH: mounts it at that path in the pods; may be repeated",
            flag_values=values,
        )
        integer(
            "restarts", 10, "how often it is restarted at most; 10 by default", flag_values=values
        )
        integer("grace", 300, "seconds that pods have to save; 300 by default", flag_values=values)
        string("reserved", "", "name of a reservation of machines", flag_values=values)
        string("cluster", "", "by default that of kubectl's current context", flag_values=values)
        string("queue", "", "a queue of Kueue, if the cluster has any", flag_values=values)
        string("namespace", "default", "of Kubernetes", flag_values=values)
        string("service_account", "", "of Kubernetes; it may read the bucket", flag_values=values)
        flags.DEFINE_enum(
            "via",
            "kubectl",
            ["kubectl", "xpk", "gcluster"],
            "what starts the job; the command of xpk or gcluster is printed for you to run",
            flag_values=values,
        )
        gcloud.define_flags(values)

    def shared(self, request: Request) -> tuple[str, ...]:
        """Folders at which buckets are mounted."""
        return tuple(path for _, path in _mounts(request.flags.mount))

    def target(self, request: Request) -> str:
        """The slices; empty for GPUs."""
        values = request.flags
        if not values.tpu_type:
            return ""
        return tpus.parse(values.tpu_type, values.topology).target(values.num_slices)

    def plan(self, request: Request) -> Plan:
        """The manifest, and the commands that create it."""
        values = request.flags
        _check(request)
        # 1. Another tool: only its command is printed.
        if values.via != "kubectl":
            note = f"run this yourself: launch.submit starts nothing with {values.via}"
            return Plan(commands=(other_tool(request),), by_hand=note)
        # 2. The manifest.
        pods = _pods(request)
        text = yaml.safe_dump(
            manifest(request.name, pods, GOES_ON), sort_keys=False, width=2000, allow_unicode=True
        )
        path = request.folder / f"{request.name}.yaml"
        # 3. The secret first: the pods need it. Its values come from stdin, so `ps` shows none.
        base = _kubectl(_context(request), values.namespace)
        commands = []
        if pods.secret:
            words = ("create", "secret", "generic", pods.secret, "--from-env-file=/dev/stdin")
            commands.append(Command((*base, *words), variables=request.variables))
        # Not `kubectl apply`, which would change another user's job of the same name.
        commands.append(Command((*base, "create", f"--filename={path}")))
        return Plan((TextFile(path, text),), tuple(commands))

    def found_by(self, request: Request) -> dict[str, Any]:
        """Its cluster, and its secret."""
        values = request.flags
        context = _context(request)
        # Recorded, as the current context may be another one when somebody asks for the job.
        context = context or run(Command(("kubectl", "config", "current-context"))).strip()
        resource = {"context": context, "namespace": values.namespace, "image": values.image}
        resource |= {"queue": values.queue} if values.queue else {}
        return resource | ({"secret": _secret(request.name)} if request.variables else {})

    def start(self, record: Record, request: Request, plan: Plan) -> Record:
        """Creates both the secret and the JobSet, or neither."""
        self._free_name(record)
        plan.write()
        begun = 0
        try:
            for command in plan.commands:
                run(command)
                begun += 1
        except InputError:
            plan.remove()
            # The secret was created and the JobSet was not: delete the last kind only.
            if begun:
                run(self.delete(record).commands[-1])
            raise
        return dataclasses.replace(record, state="submitted")

    def _free_name(self, record: Record) -> None:
        """Deletes an ended job with this name if it is ours."""
        jobset = _get(record)
        if not jobset:
            return
        labels = jobset["metadata"].get("labels", {})
        # Its pods would only tell running from waiting; whether it has ended is known without them.
        if labels.get("app.kubernetes.io/managed-by") != MANAGER or _state(jobset, []) not in ENDED:
            raise InputError(
                f"the cluster already has a JobSet {record.name!r}; give this job another "
                f"--name, or delete it (python -m launch.submit delete {record.name})"
            )
        say(f"{record.name}: the job with that name has ended; replacing it")
        for command in self.delete(record).commands:
            run(command)

    def look(self, record: Record) -> Record:
        """Asks the cluster for the JobSet and its pods."""
        jobset = _get(record)
        if not jobset:
            state = record.state if record.state in ENDED else "stopped"
            return dataclasses.replace(record, state=state)
        words = ("get", "pods", f"--selector={_SELECTOR.format(name=record.name)}")
        pods = json.loads(run(Command((*_base(record), *words, "--output=json"))))["items"]
        codes = [code for pod in pods for code in _exit_codes(pod)]
        # Which pod failed first is unknown; a code that does not restart the job says more.
        failures = sorted((code for code in codes if code), key=lambda code: code in GOES_ON)
        last = failures[:1] or codes[:1]
        attempts = jobset.get("status", {}).get("restarts", 0) + 1
        return dataclasses.replace(
            record,
            state=_state(jobset, pods),
            exit_codes=last or record.exit_codes,
            attempts=attempts,
        )

    def logs(self, record: Record) -> Command:
        """The first pod's log."""
        selector = _SELECTOR.format(name=record.name) + _FIRST
        words = ("logs", f"--selector={selector}", "--container=task", "--tail=100", "--follow")
        return Command((*_base(record), *words))

    def stop(self, record: Record) -> Plan:
        """Suspends the JobSet: its pods get SIGTERM and time to save."""
        if "queue" in record.resource:
            return self.delete(record)  # Kueue would resume a suspended job.
        patch = '--patch={"spec":{"suspend":true}}'
        words = ("patch", "jobset", record.name, "--type=merge", patch)
        return Plan(commands=(Command((*_base(record), *words)),))

    def delete(self, record: Record) -> Plan:
        """Deletes the JobSet with its pods and their logs, and the secret."""
        kinds = [("jobset", record.name)]
        kinds += [("secret", record.resource["secret"])] if "secret" in record.resource else []
        return Plan(
            commands=tuple(
                Command((*_base(record), "delete", *kind, "--ignore-not-found")) for kind in kinds
            )
        )


def _check(request: Request) -> None:
    values = request.flags
    if not values.image:
        raise InputError("--image is missing; build one with launch/submit/Dockerfile and pass it")
    if bool(values.tpu_type) == bool(values.gpus):
        raise InputError(
            f"the machines are missing; pass --tpu_type={tpus.SYNTAX}, or --gpus=8 --gpu_type=h100"
        )
    check_least(values, num_slices=1, nodes=1, gpus=0, restarts=0, grace=1)
    if values.gpus and (values.num_slices > 1 or values.topology or values.host_chips):
        raise InputError(
            "--num_slices, --topology and --host_chips need TPUs, --nodes "
            "needs GPUs; leave the others out"
        )
    if values.tpu_type and values.nodes > 1:
        raise InputError("--nodes needs GPUs; --tpu_type already says how many hosts a slice has")
    if values.spot and values.reserved:
        raise InputError("--spot and --reserved exclude each other; pass only one of them")
    check_processes(request.task, _hosts(request) * values.num_slices, 0)


def _hosts(request: Request) -> int:
    """Hosts of a slice, or of the whole job with GPUs."""
    values = request.flags
    if values.gpus:
        return values.nodes
    tpu = tpus.parse(values.tpu_type, values.topology)
    hosts, rest = divmod(tpu.chips, _host_chips(request, tpu))
    if rest:
        raise InputError(
            f"--host_chips must divide the {tpu.chips} chips of the slice "
            f"into hosts of one kind, got {values.host_chips}"
        )
    return hosts


def _host_chips(request: Request, tpu: tpus.Slice) -> int:
    given = request.flags.host_chips
    if given not in (0, 1, 4, 8):
        raise InputError(f"--host_chips must be 1, 4 or 8, got {given}")
    # Hosts of larger slices have 4 chips each.
    return given or min(tpu.chips, 4)


def _pods(request: Request) -> Pods:
    values = request.flags
    # 1. The resource of a host, the nodes that have it, and how the processes find each other.
    hosts = _hosts(request)
    argv = request.task.argv
    if values.gpus:
        chips, nodes = ("nvidia.com/gpu", values.gpus), {"gke-accelerator": GPUS[values.gpu_type]}
        if hosts > 1:
            # JobSet gives the first pod this name; Kubernetes replaces $(JOB_COMPLETION_INDEX) by a
            # pod's number. JAX finds the processes of TPU slices by itself.
            address = f"{request.name}-{JOB}-0-0.{request.name}:{PORT}"
            who = (f"--num_processes={hosts}", "--process_id=$(JOB_COMPLETION_INDEX)")
            argv = (*argv, f"--coordinator={address}", *who)
    else:
        tpu = tpus.parse(values.tpu_type, values.topology)
        chips = ("google.com/tpu", _host_chips(request, tpu))
        nodes = {"gke-tpu-accelerator": tpu.generation.gke, "gke-tpu-topology": tpu.shape}
    nodes |= {"gke-spot": "true"} if values.spot else {}
    nodes |= {"reservation-name": values.reserved} if values.reserved else {}
    # 2. Everything that the manifest says.
    return Pods(
        image=values.image,
        argv=argv,
        hosts=hosts,
        slices=values.num_slices,
        chips=chips,
        nodes={f"cloud.google.com/{key}": value for key, value in nodes.items()},
        mounts=_mounts(values.mount),
        secret=_secret(request.name) if request.variables else "",
        service_account=values.service_account,
        commit=request.checkout.commit if values.check_image else "",
        grace=values.grace,
        restarts=values.restarts,
        queue=values.queue,
    )


def _mounts(texts: list[str]) -> tuple[tuple[str, str], ...]:
    mounts = []
    for text in texts:
        match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]*(?:/[^:]+?)?)/?:(/[^:]+)", text)
        if not match:
            raise InputError(
                f"--mount must be gs://BUCKET:/PATH or gs://BUCKET/FOLDER:/PATH, got {text}"
            )
        mounts.append((match[1], match[2]))
    return tuple(mounts)


def _secret(name: str) -> str:
    return f"{name}-env"


def _context(request: Request) -> str:
    """The cluster in kubectl's configuration, as gcloud names it; empty for the current context."""
    values = request.flags
    if not values.cluster:
        return ""
    project = gcloud.setting("project", values.project)
    return f"gke_{project}_{gcloud.setting('zone', values.zone)}_{values.cluster}"


def _kubectl(context: str, namespace: str) -> tuple[str, ...]:
    flag = (f"--context={context}",) if context else ()
    return ("kubectl", *flag, f"--namespace={namespace}")


def _base(record: Record) -> tuple[str, ...]:
    return _kubectl(record.resource["context"], record.resource["namespace"])


def _get(record: Record) -> dict[str, Any]:
    """The JobSet; empty if it does not exist."""
    words = ("get", "jobset", record.name, "--output=json")
    return json.loads(run(Command((*_base(record), *words)), _MISSING) or "{}")


def _state(jobset: dict[str, Any], pods: list[dict[str, Any]]) -> str:
    conditions = jobset.get("status", {}).get("conditions", [])
    true = {condition["type"] for condition in conditions if condition["status"] == "True"}
    if "Completed" in true:
        return "done"
    if "Failed" in true:
        return "failed"
    if jobset.get("spec", {}).get("suspend"):
        # Kueue keeps a JobSet suspended until there is room for it.
        return "waiting" if QUEUE in jobset["metadata"].get("labels", {}) else "stopped"
    phases = {pod["status"].get("phase") for pod in pods}
    return "running" if "Running" in phases else "waiting" if phases else "submitted"


def _exit_codes(pod: dict[str, Any]) -> list[int]:
    states = [status.get("state", {}) for status in pod["status"].get("containerStatuses", [])]
    return [state["terminated"]["exitCode"] for state in states if "terminated" in state]
