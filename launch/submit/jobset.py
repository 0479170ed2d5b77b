"""The manifest of a job on Kubernetes: a JobSet (jobset.sigs.k8s.io) with one pod per host."""

import dataclasses
import re
from typing import Any

# Names: of the Jobs in a JobSet, of the container, and of us, by which we know our JobSets.
JOB, CONTAINER, MANAGER = "hosts", "task", "imagen-ft-submit"
PORT = 8476  # of the coordinator: any will do, as every pod has an address of its own
QUEUE = "kueue.x-k8s.io/queue-name"
# The variable by which an image names its commit; if that is not the job's commit, $0, the
# container exits with a code that restarts nothing.
COMMIT = "IMAGEN_FT_COMMIT"
_LOOK = (
    f'[ "${COMMIT}" = "$0" ] || {{ echo "error: the image is of commit ${{{COMMIT}:-?}}, the job '
    'of $0: build it anew (launch/submit/Dockerfile)" >&2; exit 2; }; '
)
# A slice that does not know of the others would train alone, into the same work directory.
_LOOK_SLICES = (
    '[ "$MEGASCALE_NUM_SLICES" = {count} ] || {{ echo "error: MEGASCALE_NUM_SLICES is '
    "${{MEGASCALE_NUM_SLICES:-not set}}, the job has {count} slices: GKE sets it for a JobSet from "
    '1.27.4-gke.900 on" >&2; exit 2; }}; '
)


@dataclasses.dataclass(frozen=True)
class Pods:
    """The pods of a job."""

    image: str
    argv: tuple[str, ...]
    hosts: int  # of one slice, or of all GPUs
    slices: int  # of TPUs; 1 for GPUs
    chips: tuple[str, int]  # a host's resource, google.com/tpu or nvidia.com/gpu, and its count
    nodes: dict[str, str]  # labels of the nodes that can run the pods
    mounts: tuple[tuple[str, str], ...]  # (BUCKET or BUCKET/FOLDER, path in the pod)
    secret: str  # its entries become variables of the task; '' for none
    service_account: str  # of Kubernetes; '' for the default one
    commit: str  # the commit that the image must have; '' for any
    grace: int  # seconds to save between SIGTERM and SIGKILL
    restarts: int  # how often the job is started again
    queue: str  # of Kueue; '' for none


def manifest(name: str, pods: Pods, goes_on: tuple[int, ...]) -> dict[str, Any]:
    """The JobSet; it restarts after the exit codes in `goes_on` and ends after all others."""
    # 1. Names and labels.
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": MANAGER},
    }
    if pods.queue:
        metadata["labels"][QUEUE] = pods.queue
    if pods.chips[0] == "google.com/tpu":
        # Puts all pods of a Job on the hosts of one slice.
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    # 2. Which failures restart the job. An exit code outside of `goes_on` fails its Job by this
    # rule, and thereby the JobSet. Any other failure exceeds the Job's backoffLimit of 0; then the
    # JobSet starts everything again once all pods are gone.
    ends = {"containerName": CONTAINER, "operator": "NotIn", "values": sorted(goes_on)}
    rules = [
        # Evictions and preemptions, whatever the exit code: count before the next rule sees them.
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
    # 3. The JobSet: only that rule ends it, anything else is a restart.
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
            # Pods must resolve each other's names before they are ready, to start together.
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
    # 1. Volumes.
    key, number = pods.chips
    # By default a container has 64 MB of shared memory, which data-loading workers fill at once.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    paths = ["/dev/shm"]
    for bucket, path in pods.mounts:
        volumes.append(_bucket(f"bucket-{len(paths) - 1}", bucket))
        paths.append(path)
    # 2. The container; a request for chips must equal its limit.
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
    # 3. The pod. "Never" restart: the JobSet restarts all pods together, never one alone.
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pods.grace,
        "nodeSelector": pods.nodes,
        "containers": [container],
        "volumes": volumes,
    }
    if "cloud.google.com/gke-spot" in pods.nodes:
        # Spot nodes may carry this taint, which keeps off pods that do not tolerate it.
        taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        spec["tolerations"] = [{**taint, "effect": "NoSchedule"}]
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    # Adds the container that mounts buckets (Cloud Storage FUSE).
    metadata = {"annotations": {"gke-gcsfuse/volumes": "true"}} if pods.mounts else {}
    return {"metadata": metadata, "spec": spec}


def _command(pods: Pods) -> dict[str, Any]:
    """The command line, with the checks of the image and the slices before it."""
    looks = _LOOK if pods.commit else ""
    if pods.slices > 1:
        looks += _LOOK_SLICES.format(count=pods.slices)
    if not looks:
        return {"command": [*map(_escaped, pods.argv)]}
    # `exec` makes the task the container's first process, which is the one that gets SIGTERM.
    command = ["sh", "-c", f'{looks}exec "$@"', pods.commit or "sh"]
    return {"command": command, "args": [*map(_escaped, pods.argv)]}


def _escaped(word: str) -> str:
    """Keeps Kubernetes from replacing anything in a word but the pod's number."""
    # It reads $(NAME) as a variable and $$ as an escaped $.
    index = "$(JOB_COMPLETION_INDEX)"
    if word == f"--process_id={index}":
        return word
    return re.sub(r"\$(?=[$(])", "$$", word)


def _bucket(name: str, bucket: str) -> dict[str, Any]:
    bucket, _, folder = bucket.partition("/")
    # implicit-dirs: shows folders that exist only as parts of objects' names.
    options = "implicit-dirs" + (f",only-dir={folder}" if folder else "")
    attributes = {"bucketName": bucket, "mountOptions": options}
    return {
        "name": name,
        "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes},
    }
