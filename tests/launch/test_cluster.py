"""What is made of the variables that clusters set."""

import pytest

from launch import cluster
from launch.errors import InputError
from tests.launch.cluster_variables import (
    GKE_GPU,
    GKE_TPU,
    MULTISLICE,
    OPEN_MPI,
    SLURM,
    SLURM_EIGHT,
    SLURM_SCRIPT,
)

ALONE = {
    "nothing": {},
    "a batch script of one task": SLURM_SCRIPT | {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"},
    "a step of one task": SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
    "a step of one task of a heterogeneous job": SLURM
    | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_HET_SIZE": "2"},
    "one TPU host": {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "one slice": {"MEGASCALE_NUM_SLICES": "1"},
    "a template that names no slices": {"MEGASCALE_NUM_SLICES": "", "MEGASCALE_SLICE_ID": ""},
    "a pod": GKE_GPU,
    "MPI's only process": OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
}


@pytest.mark.parametrize("environment", ALONE.values(), ids=ALONE)
def test_who_is_alone(environment):
    assert cluster.find_job(environment) is None
    cluster.check_alone(environment, "")


def slurm(**changes):
    job = cluster.find_job(SLURM | {f"SLURM_{name}": value for name, value in changes.items()})
    assert job.fault == ""
    return job.arguments


def test_a_step_of_slurm():
    port = 61440 + 4321 + 3 * 599 - 4096
    expected = dict(coordinator_address=f"gpu07:{port}", num_processes=2, process_id=1)
    assert slurm() == expected
    expected |= dict(num_processes=16, process_id=11)
    assert cluster.find_job(SLURM_EIGHT).arguments == expected
    # The step's own tasks count, whatever the allocation has.
    assert slurm(NTASKS="64", NPROCS="64")["num_processes"] == 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[007-010,12],cpu1", "gpu007"),
        ("gpu[7,9-10]", "gpu7"),
        ("rack[1-2]n[04,05],x", "rack1n04"),
        ("node-a.b[3]", "node-a.b3"),
        ("a[1-2]-ib,b", "a1-ib"),
    ],
)
def test_the_first_node(nodes, first):
    assert slurm(STEP_NODELIST=nodes)["coordinator_address"].split(":")[0] == first


def test_steps_have_ports_of_their_own(monkeypatch):
    def port(job, step):
        return int(slurm(JOB_ID=str(job), STEP_ID=str(step))["coordinator_address"].split(":")[1])

    ports = {port(job, step) for job in range(4000, 4020) for step in range(20)}
    assert len(ports) == 400 and min(ports) >= 61440 and max(ports) < 65536
    monkeypatch.setitem(SLURM, "JAX_COORDINATOR_PORT", "1234")
    assert port(4000, 1) == 1234
    monkeypatch.setitem(SLURM, "JAX_COORDINATOR_ADDRESS", "other:12")
    assert slurm()["coordinator_address"] == "other:12"


@pytest.mark.parametrize("environment", [GKE_TPU, MULTISLICE, OPEN_MPI])
def test_jobs_that_jax_asks_about_itself(environment):
    job = cluster.find_job(environment)
    assert (job.arguments, job.fault, job.is_started) == ({}, "", True)


def test_helpers_of_mpi_are_steps_of_slurm():
    for size in ("16", SLURM["SLURM_STEP_NUM_TASKS"]):
        job = cluster.find_job(SLURM | OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": size})
        assert job.source == f"MPI's OMPI_COMM_WORLD_SIZE={size}"
    # srun gives its own tasks ranks of PMI.
    assert cluster.find_job(SLURM | {"PMI_SIZE": "2"}).arguments["num_processes"] == 2


FAULTS = {
    "a heterogeneous job": (SLURM | {"SLURM_HET_SIZE": "2"}, "several node lists; pass --coord"),
    "no srun": (SLURM_SCRIPT, "start it with srun, or pass --coordinator=none"),
    "no srun, nodes alone": (
        {k: v for k, v in SLURM_SCRIPT.items() if k != "SLURM_NTASKS"},
        "start it with srun",
    ),
    "MPI without an address": (
        {"OMPI_COMM_WORLD_SIZE": "2"},
        "JAX cannot find the processes of this MPI; pass --coordinator=HOST:PORT",
    ),
    "another MPI": (SLURM | {"PMI_SIZE": "16"}, "JAX cannot find the processes of this MPI"),
}


@pytest.mark.parametrize(("environment", "said"), FAULTS.values(), ids=FAULTS)
def test_jobs_that_cannot_be_joined(environment, said):
    assert said in cluster.find_job(environment).fault


WRONG = {
    "tasks": (
        SLURM | {"SLURM_STEP_NUM_TASKS": "2(x2)"},
        "SLURM_STEP_NUM_TASKS is not a number ('2(x2)')",
    ),
    "tasks of a script": (
        SLURM_SCRIPT | {"SLURM_NTASKS": "two"},
        "SLURM_NTASKS is not a number ('two')",
    ),
    "no rank": ({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is missing"),
    "rank": (SLURM | {"SLURM_PROCID": "2"}, r"SLURM_PROCID must be from 0 to 1"),
    "job": (SLURM | {"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID is not a number ('x')"),
    "port": (SLURM | {"JAX_COORDINATOR_PORT": "x"}, "JAX_COORDINATOR_PORT is not a number ('x')"),
    "nodes": (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST must name a node, got ''"),
    "hosts": (
        GKE_TPU | {"TPU_WORKER_HOSTNAMES": "a,,b"},
        "TPU_WORKER_HOSTNAMES must be a list of hosts, got 'a,,b'",
    ),
    "a warning": (
        {"TPU_WORKER_HOSTNAMES": "WARNING: could not determine TPU worker hostnames, please set"},
        "must be a list of hosts",
    ),
    "worker": (GKE_TPU | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID must be from 0 to 1, got 2"),
    "no worker": (
        {k: v for k, v in GKE_TPU.items() if k != "TPU_WORKER_ID"},
        "TPU_WORKER_ID is missing",
    ),
    "slices": (
        GKE_TPU | {"MEGASCALE_NUM_SLICES": "-1"},
        "MEGASCALE_NUM_SLICES is not a number ('-1')",
    ),
    "slice": (
        MULTISLICE | {"MEGASCALE_SLICE_ID": "2"},
        "MEGASCALE_SLICE_ID must be from 0 to 1, got 2",
    ),
    "no coordinator": (
        MULTISLICE | {"MEGASCALE_COORDINATOR_ADDRESS": ""},
        "MEGASCALE_COORDINATOR_ADDRESS is missing",
    ),
    "processes of MPI": (
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "x"},
        "OMPI_COMM_WORLD_SIZE is not a number ('x')",
    ),
    "two clusters": (
        SLURM | GKE_TPU,
        "two jobs, Slurm's SLURM_STEP_NUM_TASKS=2 and Cloud TPU's TPU_WORKER_HOSTNAMES=job-0-0.job",
    ),
}


@pytest.mark.parametrize(("environment", "said"), WRONG.values(), ids=WRONG)
def test_wrong_variables(environment, said):
    with pytest.raises(InputError) as raised:
        cluster.find_job(environment)
    assert said in str(raised.value)


@pytest.mark.parametrize("environment", [SLURM, GKE_TPU, OPEN_MPI, FAULTS["another MPI"][0]])
def test_what_is_the_work_of_one_process(environment):
    with pytest.raises(InputError, match=r"one process, but was started as one of several \(.*=\S"):
        cluster.check_alone(environment, "")
    cluster.check_alone(environment, "none")
    cluster.check_alone(SLURM_SCRIPT, "")
    with pytest.raises(InputError, match="--coordinator=auto: this command is one process"):
        cluster.check_alone({}, "auto")
