"""Command lines and job scripts."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from studies.runner.execute import submit
from studies.runner.launcher import Local, Slurm
from studies.runner.runs import Run, make_run
from training.config.errors import ConfigError


def a_run(config_file: str, out: Path) -> Run:
    return make_run(config_file, ["training.steps=20"], "baseline", 3, out, {"model.router_z_coefficient": 0.0})


def test_local_command(config_file: str, tmp_path: Path):
    run = a_run(config_file, tmp_path / "study")
    command = Local(ranks=2, jobs=2, gpus=0).command(run, slot=1, port=1234)
    assert command[1:] == [
        "--num_gpus", "2", "--master_port", "1234", "--quiet", "train.py", "--config", config_file, "training.steps=20",
        "model.router_z_coefficient=0.0", "training.seed=3", "training.eval_every=20", "training.log_every=1",
        "optimizer.non_finite=stop", "guard.spike_threshold=0.0",
        f"training.output_dir={tmp_path}/study/runs", "training.name=baseline-3",
    ]  # fmt: skip
    on_gpus = Local(ranks=2, jobs=2, gpus=4)
    assert on_gpus.command(run, slot=1, port=1234)[1:3] == ["--include", "localhost:2,3"]
    assert on_gpus.environment() == {}


def test_cores_are_divided_among_jobs_and_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which would be kept
    cores = len(os.sched_getaffinity(0))
    assert Local(1, cores, 0).environment()["OMP_NUM_THREADS"] == "1"
    assert Local(1, 1, 0).environment()["OMP_NUM_THREADS"] == str(cores)
    assert Local(2, 3 * cores, 0).environment()["OMP_NUM_THREADS"] == "1"


def test_a_run_with_a_checkpoint_resumes(config_file: str, tmp_path: Path):
    run = a_run(config_file, tmp_path / "study")
    assert Local(1, 1, 0).command(run, 0, 1)[-1] != "--resume"
    (run.dir / "checkpoints").mkdir(parents=True)
    (run.dir / "checkpoints" / "latest").write_text("step_00000001")
    assert Local(1, 1, 0).command(run, 0, 1)[-1] == "--resume"


def test_slurm_script_runs_in_a_shell_whatever_the_folder_is_called(config_file: str, tmp_path: Path):
    """The script in bash, with programs in place of Slurm's that write down how they were called."""
    out = tmp_path / "a study; touch broken $(touch broken) 'x'"
    run = a_run(config_file, out)
    slurm = Slurm(nodes=4, gpus_per_node=8, time="1:00:00", options=("--partition=gpu",))
    script = slurm.script(run)
    directives = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=4", "--gpus-per-node=8", "--time=1:00:00", "--partition=gpu", "--requeue"} <= set(directives)
    assert f"--output={out}/logs/baseline-3.log" in directives

    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {"scontrol": "echo host7", "srun": 'printf "%s\\0" "$@" > called'}.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "host[7-8]",
    }  # fmt: skip

    def execute() -> list[str]:
        (tmp_path / "called").unlink(missing_ok=True)
        subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment, check=True)
        called = tmp_path / "called"
        return called.read_text().split("\0")[:-1] if called.exists() else []

    called = execute()
    assert called[:7] == ["torchrun", "--nnodes", "4", "--nproc-per-node", "8", "--rdzv-backend", "c10d"]
    assert called[called.index("--rdzv-endpoint") + 1] == "host7:29500"
    assert called[called.index("train.py") + 1 :] == ["--config", config_file, *run.overrides]
    assert not (tmp_path / "broken").exists()

    (run.dir / "checkpoints").mkdir(parents=True)
    (run.dir / "checkpoints" / "latest").write_text("step_00000001")
    assert execute()[-1] == "--resume"
    (run.dir / "summary.json").write_text("{}")
    assert execute() == []


def test_description_holds_every_run(config_file: str, tmp_path: Path):
    runs = [a_run(config_file, tmp_path / "study")]
    text = Slurm(4, 8, None, ()).describe(runs)
    assert text.count("#!/usr/bin/env bash") == text.count("\nsbatch ") == 1
    assert shlex.join(["train.py", "--config", config_file, *runs[0].overrides]) in text
    assert "deepspeed --num_gpus 1" in Local(1, 1, 0).describe(runs)
    assert not (tmp_path / "study").exists()


def test_unfinished_runs_are_submitted_and_a_refusal_is_one_line(
    config_file: str, finished: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    programs = tmp_path / "bin"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(f'#!/usr/bin/env bash\necho "$1" >> {tmp_path}/submitted; echo "Submitted batch job 7"\n')
    sbatch.chmod(0o755)
    runs, slurm = [finished("baseline", 0, 4.0), a_run(config_file, tmp_path / "study")], Slurm(1, 8, None, ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="sbatch is not installed here"):
        submit(runs, slurm)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    submit(runs, slurm)
    (script,) = (tmp_path / "submitted").read_text().splitlines()
    assert Path(script).read_text() == slurm.script(runs[1])
    assert runs[1].log.parent.is_dir()
    sbatch.write_text("#!/usr/bin/env bash\necho 'error: no such partition' >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"rejected .*baseline-3\.sbatch: error: no such partition"):
        submit(runs, slurm)
