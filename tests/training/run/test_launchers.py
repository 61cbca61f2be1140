"""What each launcher says is understood, what contradicts itself is refused in one line that names the variable."""

import re

import pytest

from training.config.errors import ConfigError
from training.run.launchers import Launch, ends_all, first_host, likely_rank, read_launch

MEETING = {"MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
# As Slurm 22.05 and later set them; the second of two tasks.
BATCH = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node0",
}  # fmt: skip
STEP = BATCH | {
    "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_GTIDS": "0,1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "node0", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NUM_NODES": "1",
}  # fmt: skip
ACROSS = STEP | {  # two tasks on each of two hosts; the first of the second host
    "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_GTIDS": "2,3", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_NODELIST": "gpu[05-09]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
DEEPSPEED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "ranks"),  # rank, local rank, world size, local world size
    [
        ({}, (0, 0, 1, 1)),
        (MEETING, (0, 0, 1, 1)),
        ({"MASTER_ADDR": "127.0.0.1"}, (0, 0, 1, 1)),
        ({"RANK": "", "WORLD_SIZE": " ", "LOCAL_RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""}, (0, 0, 1, 1)),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 0, 1, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 0, 1, 1)),
        (TORCHRUN | MEETING, (3, 1, 4, 2)),
        (DEEPSPEED | MEETING, (1, 1, 2, 2)),
        (DEEPSPEED | MEETING | BATCH, (1, 1, 2, 2)),  # deepspeed in a batch script
        (TORCHRUN | MEETING | STEP, (3, 1, 4, 2)),  # srun torchrun: one task per host
        (BATCH, (0, 0, 1, 1)),  # python train.py in a batch script of two tasks
        (BATCH | MEETING | {"WORLD_SIZE": "1"}, (0, 0, 1, 1)),
        (BATCH | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}, (0, 0, 1, 1)),  # sbatch within srun
        (BATCH | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"}, (0, 0, 1, 1)),  # srun -n 1
        (STEP, (1, 1, 2, 2)),
        (STEP | MEETING | {"WORLD_SIZE": "2"}, (1, 1, 2, 2)),  # a batch script that exports WORLD_SIZE
        (STEP | MEETING | {"RANK": "1", "WORLD_SIZE": "2"}, (1, 1, 2, 2)),  # export RANK=$SLURM_PROCID in each task
        (ACROSS, (2, 0, 4, 2)),
        (OPENMPI | MEETING, (3, 1, 4, 2)),
        (OPENMPI | MEETING | BATCH, (3, 1, 4, 2)),
        (OPENMPI | MEETING | STEP, (3, 1, 4, 2)),  # mpirun starts its daemons by srun
        (HYDRA, (1, 1, 2, 2)),
        (STEP | {"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 1, 2, 2)),  # srun --mpi=pmi2
    ],
)  # fmt: skip
def test_ranks_are_those_of_the_launcher(environment: dict[str, str], ranks: tuple[int, ...]):
    assert read_launch(environment)[1:5] == ranks


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2 but RANK is not set"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK = 1 but RANK is not set"),
        ({"RANK": "0"}, "RANK = 0 but WORLD_SIZE is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"} | MEETING, "RANK = 0 but LOCAL_RANK is not set"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        (DEEPSPEED | MEETING | {"MASTER_PORT": "0"}, "MASTER_PORT = 0"),
        (DEEPSPEED | MEETING | {"MASTER_PORT": "http"}, "MASTER_PORT = 'http'"),
        (DEEPSPEED | MEETING | {"RANK": "2"}, "RANK and WORLD_SIZE"),
        (DEEPSPEED | MEETING | {"RANK": "-1"}, "RANK = '-1'"),
        (DEEPSPEED | MEETING | {"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two'"),
        (DEEPSPEED | MEETING | {"WORLD_SIZE": "0"}, "RANK and WORLD_SIZE"),
        (DEEPSPEED | MEETING | {"LOCAL_RANK": "2"}, "LOCAL_RANK"),
        (DEEPSPEED | MEETING | {"LOCAL_SIZE": "3"}, "LOCAL_SIZE"),
        (STEP | MEETING | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 0 but srun started"),
        (STEP | {"WORLD_SIZE": "4"}, "WORLD_SIZE = 4 contradicts srun, which says 2"),
        (STEP | {"LOCAL_RANK": "0"}, "LOCAL_RANK = 0 contradicts srun"),
        (STEP | {"SLURM_LOCALID": ""}, "SLURM_PROCID = 1 but SLURM_LOCALID is not set"),
        (BATCH | {"SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS is not set"),
        (ACROSS | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE = two"),
        (OPENMPI, "MASTER_ADDR is not set"),
        (OPENMPI | MEETING | {"OMPI_COMM_WORLD_LOCAL_RANK": ""}, "OMPI_COMM_WORLD_LOCAL_RANK is not set"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID is not set"),
    ],
)  # fmt: skip
def test_what_is_incomplete_or_contradicts_itself_is_refused_by_name(environment: dict[str, str], named: str):
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        read_launch(environment)
    assert "\n" not in str(caught.value)


def test_tasks_of_srun_meet_at_the_first_host_and_at_a_port_of_their_step():
    across, other_step = read_launch(ACROSS), read_launch(ACROSS | {"SLURM_STEP_ID": "1"})
    assert across.address == "gpu07"
    assert across.port == read_launch(ACROSS | {"SLURM_PROCID": "1", "SLURM_NODEID": "0", "SLURM_GTIDS": "0,1"}).port
    assert across.port != other_step.port
    assert read_launch(STEP).address == "127.0.0.1"
    assert read_launch(ACROSS | MEETING)[5:7] == ("node-0", 29500)


def test_a_batch_script_of_several_tasks_is_told_that_it_is_one_process():
    assert "SLURM_NTASKS = 2" in (read_launch(BATCH).notice or "")
    one_task = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GTIDS": "0", "SLURM_PROCID": "0"}
    assert read_launch(STEP | one_task).notice is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node0", "node0"), ("node[01-03,07]", "node01"), ("a[2,4-5]b[07-09],c", "a2b07"), ("x1,x2", "x1"),
        ("gpu-a[9-12].cluster,gpu-b1", "gpu-a9.cluster"), ("", ""),
    ],
)  # fmt: skip
def test_the_first_host_of_a_node_list(nodes: str, first: str):
    assert first_host(nodes) == first


def test_ranks_that_no_launcher_ends_are_told():
    assert ends_all(read_launch({}), {})
    assert ends_all(read_launch(DEEPSPEED | MEETING), DEEPSPEED)
    assert not ends_all(read_launch(TORCHRUN | MEETING), TORCHRUN)  # that of the other host stays
    assert not ends_all(read_launch(STEP), STEP)
    assert not ends_all(Launch("the launcher", 0, 0, 2, 2), {})  # started by hand


def test_the_likely_rank_of_a_refused_environment():
    assert likely_rank({"RANK": "x", "SLURM_PROCID": "3"}) == 3
    assert likely_rank({"WORLD_SIZE": "2"}) == 0
