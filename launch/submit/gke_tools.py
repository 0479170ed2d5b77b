"""Jobs on GKE by other tools: prints their command lines for the user to run."""

import shlex

from launch.errors import InputError
from launch.submit import gcloud, tpus
from launch.submit.mode import Request
from launch.submit.plan import Command
from launch.submit.processes import GOES_ON


def other_tool(request: Request) -> Command:
    """The nearest command of xpk or gcluster; `InputError` if it lacks a flag that is asked for."""
    # 1. What this module does not translate.
    values = request.flags
    for name in ("env", "mount", "service_account", "queue"):
        if values[name].value:
            raise InputError(
                f"--{name} cannot be combined with --via={values.via}, which has its own flag for "
                f"it; leave --{name} out, and add it to the printed command"
            )
    if values.gpus or not values.cluster:
        raise InputError(f"--via={values.via} needs --cluster and --tpu_type; add them")
    # 2. What both tools are told.
    tpu = tpus.parse(values.tpu_type, values.topology)
    codes, task = ",".join(map(str, GOES_ON)), shlex.join(request.task.argv)
    project = gcloud.setting("project", values.project)
    zone = gcloud.setting("zone", values.zone)
    if values.via == "xpk":
        # 3. xpk 1.16: src/xpk/parser/workload.py. It knows other topologies by their shape.
        usual = tpus.usual_topology(tpu.chips, tpu.generation) == tpu.topology
        kind = tpu.accelerator_type if usual else f"{tpu.generation.prefix}-{tpu.shape}"
        options = {"workload": request.name, "cluster": values.cluster, "project": project}
        options |= {"zone": zone, "tpu-type": kind, "num-slices": values.num_slices}
        options |= {"docker-image": values.image, "command": task}
        options |= {"max-restarts": values.restarts, "restart-on-exit-codes": codes}
        options |= {"termination-grace-period-seconds": values.grace}
        options |= {"reservation": values.reserved} if values.reserved else {}
        begin, end = ("xpk", "workload", "create"), ("--spot",) if values.spot else ()
    else:
        # 3. gcluster 1.103: docs/gcluster_job_guide.md of GoogleCloudPlatform/cluster-toolkit.
        options = {"name": request.name, "cluster": values.cluster, "project": project}
        options |= {"location": zone, "compute-type": tpu.generation.gke, "topology": tpu.shape}
        options |= {"num-slices": values.num_slices, "image": values.image, "command": task}
        options |= {"restarts": values.restarts, "restart-on-exit-codes": codes}
        options |= {"grace-period": f"{values.grace}s"}
        model = "spot" if values.spot else "reservation" if values.reserved else ""
        options |= {"gke-nap-provisioning": model} if model else {}
        options |= {"gke-nap-reservation": values.reserved} if values.reserved else {}
        begin, end = ("gcluster", "job", "submit"), ()
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return Command((*begin, *words, *end))
