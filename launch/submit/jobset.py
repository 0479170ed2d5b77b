"""The manifest of a job on Kubernetes: a JobSet (jobset.sigs.k8s.io) with a pod a host."""

import dataclasses
import re
from typing import Any

# Of the Jobs in it, of the container, of what it finds its own job sets by.
JOB, CONTAINER, MANAGER = "hosts", "task", "imagen-ft-submit"
PORT = 8476
QUEUE = "kueue.x-k8s.io/queue-name"
# What the image says of its code, and what the container does if that is not the job's ($0): it
# ends with a code after which nobody starts it again.
COMMIT = "IMAGEN_FT_COMMIT"
_LOOK = (
    f'[ "${COMMIT}" = "$0" ] || {{ echo "error: the image is of commit ${{{COMMIT}:-?}}, the job '
    'of $0: build it anew (launch/submit/Dockerfile)" >&2; exit 2; }; '
)
# A slice that does not know of the others would train alone, into the same folder.
_LOOK_SLICES = (
    '[ "$MEGASCALE_NUM_SLICES" = {count} ] || {{ echo "error: MEGASCALE_NUM_SLICES is '
    "${{MEGASCALE_NUM_SLICES:-not set}}, the job has {count} slices: GKE sets it for a JobSet from "
    '1.27.4-gke.900 on" >&2; exit 2; }}; '
)


@dataclasses.dataclass(frozen=True)
class Pods:
    """What the pods of a job are.

    Attributes:
        image: that they run.
        argv: command line of each.
        hosts: of a slice, or of all.
        slices: of TPUs; 1 for GPUs.
        chips: key and number of the resource of a host: google.com/tpu or nvidia.com/gpu.
        nodes: labels of the nodes that they run on.
        mounts: buckets, with a folder behind / or without, and where they are seen.
        secret: whose entries are variables of the task; empty for none.
        service_account: of Kubernetes; empty for the default one.
        commit: that the image has to say it has; empty for any.
        grace: seconds that they have to save.
        restarts: how often the job is started again.
        queue: of Kueue; empty for none.
    """

    image: str
    argv: tuple[str, ...]
    hosts: int
    slices: int
    chips: tuple[str, int]
    nodes: dict[str, str]
    mounts: tuple[tuple[str, str], ...]
    secret: str
    service_account: str
    commit: str
    grace: int
    restarts: int
    queue: str


def manifest(name: str, pods: Pods, goes_on: tuple[int, ...]) -> dict[str, Any]:
    """The JobSet.

    Args:
        name: of the job.
        pods: of it.
        goes_on: exit codes after which the same command goes on; the job ends after all others.
    """
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": MANAGER},
    }
    if pods.queue:
        metadata["labels"][QUEUE] = pods.queue
    if pods.chips[0] == "google.com/tpu":
        # All pods of a Job on the hosts of one slice.
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    # A pod that fails with another code fails its Job by this rule, and so all of it. Any other
    # failure is one too many for its Job; then all are started again, once all pods are gone.
    ends = {"containerName": CONTAINER, "operator": "NotIn", "values": sorted(goes_on)}
    rules = [
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": ends},
    ]
    job = {
        "completionMode": "Indexed",
        "parallelism": pods.hosts,
        "completions": pods.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": _pod(pods),
    }
    fails = {
        "name": "ends",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # Names of pods can be looked up, also before they are ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": pods.restarts,
                "restartStrategy": "BlockingRecreate",
                "rules": [fails],
            },
            "replicatedJobs": [{"name": JOB, "replicas": pods.slices, "template": {"spec": job}}],
        },
    }


def _pod(pods: Pods) -> dict[str, Any]:
    key, number = pods.chips
    # A container has 64 MB of shared memory, which the input pipeline's workers fill at once.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    paths = ["/dev/shm"]
    for bucket, path in pods.mounts:
        volumes.append(_bucket(f"bucket-{len(paths) - 1}", bucket))
        paths.append(path)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": pods.image,
        **_command(pods),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {"requests": {key: number}, "limits": {key: number}},
        "volumeMounts": [
            {"name": volume["name"], "mountPath": path}
            for volume, path in zip(volumes, paths, strict=True)
        ],
    }
    if pods.secret:
        container["envFrom"] = [{"secretRef": {"name": pods.secret}}]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pods.grace,
        "nodeSelector": pods.nodes,
        "containers": [container],
        "volumes": volumes,
    }
    if "cloud.google.com/gke-spot" in pods.nodes:
        taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        spec["tolerations"] = [{**taint, "effect": "NoSchedule"}]
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    metadata = {"annotations": {"gke-gcsfuse/volumes": "true"}} if pods.mounts else {}
    return {"metadata": metadata, "spec": spec}


def _command(pods: Pods) -> dict[str, Any]:
    """The command line; the task is the container's first process, which gets its signals."""
    looks = _LOOK if pods.commit else ""
    if pods.slices > 1:
        looks += _LOOK_SLICES.format(count=pods.slices)
    if not looks:
        return {"command": [*map(_escaped, pods.argv)]}
    command = ["sh", "-c", f'{looks}exec "$@"', pods.commit or "sh"]
    return {"command": command, "args": [*map(_escaped, pods.argv)]}


def _escaped(word: str) -> str:
    """A word in which Kubernetes replaces nothing but the number of the pod.

    It reads $(NAME) as a variable and $$ as a $.
    """
    index = "$(JOB_COMPLETION_INDEX)"
    if word == f"--process_id={index}":
        return word
    return re.sub(r"\$(?=[$(])", "$$", word)


def _bucket(name: str, bucket: str) -> dict[str, Any]:
    bucket, _, folder = bucket.partition("/")
    options = "implicit-dirs" + (f",only-dir={folder}" if folder else "")
    attributes = {"bucketName": bucket, "mountOptions": options}
    return {
        "name": name,
        "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes},
    }
