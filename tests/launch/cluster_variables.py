"""Variables as clusters set them, of one process of a job of several."""

# One task of `srun --nodes=2 --ntasks-per-node=1`, in `sbatch --nodes=2`: that on the second node.
SLURM = {
    "SLURM_JOB_ID": "4321",
    "SLURM_JOBID": "4321",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "gpu[07-08]",
    "SLURM_NPROCS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "3",
    "SLURM_STEPID": "3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURMD_NODENAME": "gpu08",
}
# The same of eight tasks a node: the fourth one on the second node.
SLURM_EIGHT = SLURM | {
    "SLURM_LOCALID": "3",
    "SLURM_NPROCS": "16",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_TASKS_PER_NODE": "8(x2)",
}
# The batch script itself has a rank, but no step.
SLURM_SCRIPT = {
    name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")
} | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURMD_NODENAME": "gpu07"}
# The second host of a slice on GKE, and of the second of two slices.
GKE_TPU = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "TPU_WORKER_HOSTNAMES": "job-0-0.job,job-0-1.job",
    "TPU_WORKER_ID": "1",
}
MULTISLICE = GKE_TPU | {
    "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.job",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
# A pod of an indexed Job whose nodes have GPUs.
GKE_GPU = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1", "HOSTNAME": "job-1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "11",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
