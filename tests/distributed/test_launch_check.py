import pytest

import unetdist.distributed.launch_check as launch_check
from unetdist.distributed.launch_check import agreed_precision, check_launch
from unetdist.errors import LaunchError

SINGLE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "False"}
"""What `accelerate launch train.py` gives to a single process."""

CONNECTED = {
    **SINGLE,
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
"""What it gives to one of two connected processes."""

PYTHON = "/venv/bin/python"
LAUNCH = [PYTHON, "/venv/bin/accelerate", "launch"]


def asked_for(number: int) -> list[str]:
    return [*LAUNCH, "--num_processes", str(number), "train.py"]


def asked_processes(command: list[str]) -> int | None:
    args = launch_check._launcher_arguments(command)
    return args and launch_check._asked_processes(args)


ENGINES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")


@pytest.mark.parametrize("env", [{}, SINGLE, CONNECTED, {"SLURM_STEP_NUM_TASKS": "1"}, {"MASTER_PORT": "29500"}])
def test_sound_launches_pass(env):
    check_launch(env)
    check_launch(env, command=asked_for(int(env.get("WORLD_SIZE", 1))), num_gpus=8)


def test_one_process_in_place_of_several():
    env = {**SINGLE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with pytest.raises(LaunchError, match=r"started one process only .*unetdist train --processes 3"):
        check_launch(env, command=asked_for(3))
    with pytest.raises(LaunchError, match=r"--processes 2 .*If your shell exports MASTER_ADDR, `unset MASTER_ADDR`"):
        check_launch(env)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_tasks_that_nobody_connected(name):
    with pytest.raises(LaunchError, match=rf"{name} \(4\) says .* each would train alone .*srun unetdist"):
        check_launch({name: "4"})
    check_launch({**CONNECTED, name: "4"})


@pytest.mark.parametrize("missing", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_a_rendezvous(missing):
    env = {name: value for name, value in CONNECTED.items() if name != missing}
    with pytest.raises(LaunchError, match=rf"set but not {missing}: .*Start with `accelerate launch`, or `unset RANK"):
        check_launch(env)


def test_left_over_world_size():
    with pytest.raises(LaunchError, match=r"WORLD_SIZE set but not RANK, .*`unset WORLD_SIZE`"):
        check_launch({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("asked", "world_size", "local_size", "advice"),
    [(3, 2, 1, r"\(2\); use `--num_processes 2 or 4`"), (10, 8, 2, r"\(4\); use `--num_processes 8 or 12`")],
)
def test_fewer_than_asked_for(asked, world_size, local_size, advice):
    env = {**CONNECTED, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(local_size)}
    with pytest.raises(LaunchError, match=rf"asked for {asked} processes and started {world_size}\. .*{advice}"):
        check_launch(env, command=asked_for(asked))
    check_launch(env, command=asked_for(world_size))


def test_more_processes_than_gpus():
    with pytest.raises(LaunchError, match=r"2 processes on this machine would share 1 GPU\(s\).*--num_processes 1 "):
        check_launch(CONNECTED, num_gpus=1)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "a second time; set trainer.global_batch_size and"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "compile the model behind the settings' back"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:0", "every process on that one device"),
        *((f"ACCELERATE_USE_{engine}", "true", "exact loss and metric") for engine in ENGINES),
    ],
)
def test_variables_that_override_the_settings(name, value, reason):
    with pytest.raises(LaunchError, match=rf"{name} \({value}\): .*{reason}.*`unset {name}`"):
        check_launch({**CONNECTED, name: value})
    for harmless in launch_check.OVERRIDES[name][0]:
        check_launch({**CONNECTED, name: harmless})


def test_gpus_that_would_stay_idle():
    env = {**SINGLE, "ACCELERATE_USE_CPU": "true"}
    with pytest.raises(
        LaunchError,
        match=r"ACCELERATE_USE_CPU \(true\) would train on the CPU and leave 2 GPU\(s\) idle; .*"
        r"`unset ACCELERATE_USE_CPU`, or, to train on the CPU, hide the GPUs: `CUDA_VISIBLE_DEVICES= accelerate",
    ):
        check_launch(env, num_gpus=2)
    check_launch(env, num_gpus=0)


@pytest.mark.parametrize(("launched", "ours"), [("fp16", "no"), ("bf16", "fp16"), ("fp8", "bf16"), ("fp8", None)])
def test_another_mixed_precision_in_the_launcher_is_refused(launched, ours):
    with pytest.raises(LaunchError, match=rf"{launched} .*ACCELERATE_MIXED_PRECISION.*{ours or 'no'}"):
        agreed_precision(ours, {**CONNECTED, "ACCELERATE_MIXED_PRECISION": launched})


@pytest.mark.parametrize(
    ("launched", "ours", "agreed"),
    [("bf16", None, "bf16"), ("no", None, "no"), (None, None, "no"), ("no", "bf16", "bf16"), ("fp16", "fp16", "fp16")],
)
def test_settings_or_else_the_launcher_choose_the_precision(launched, ours, agreed):
    assert agreed_precision(ours, {"ACCELERATE_MIXED_PRECISION": launched} if launched else {}) == agreed


@pytest.mark.parametrize(
    "command",
    [
        [PYTHON, "/venv/bin/accelerate", "launch", "--num_processes", "3", "train.py", "--num_processes", "9"],
        [PYTHON, "/venv/bin/accelerate", "launch", "--cpu", "--num-processes=3", "train.py"],
        [PYTHON, "/venv/bin/accelerate-launch", "--multi_gpu", "--num_processes=3", "train.py"],
        [PYTHON, "-m", "accelerate.commands.launch", "--num_processes", "3", "-m", "train"],
        [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "3", "train.py"],
    ],
)
def test_asked_for_on_the_command_line(command):
    assert asked_processes(command) == 3


@pytest.mark.parametrize(
    "command",
    [["bash"], [PYTHON, "train.py", "--num_processes", "3"], [PYTHON, "/venv/bin/accelerate", "launch", "t.py"]],
)
def test_nothing_asked_for(command, monkeypatch):
    monkeypatch.setattr(launch_check, "default_config_file", "/no/such/file")
    assert asked_processes(command) is None


@pytest.mark.parametrize(("line", "asked"), [("num_processes: 5", 5), ("num_processes: -1", None)])
def test_asked_for_in_a_file(tmp_path, monkeypatch, line, asked):
    file = tmp_path / "launch.yaml"
    file.write_text(f"distributed_type: MULTI_GPU\n{line}\n")
    launch = [PYTHON, "/venv/bin/accelerate", "launch"]
    assert asked_processes([*launch, "--config_file", str(file), "train.py"]) == asked
    monkeypatch.setattr(launch_check, "default_config_file", str(file))
    assert asked_processes([*launch, "train.py"]) == asked
    assert asked_processes([*launch, "--cpu", "train.py"]) is None


def test_a_parent_that_cannot_be_read(monkeypatch):
    def vanished(pid):
        raise launch_check.psutil.NoSuchProcess(pid)

    monkeypatch.setattr(launch_check.psutil, "Process", vanished)
    check_launch({})


def test_the_parent_is_read():
    assert asked_processes(None) is None  # pytest's parent is no launcher


@pytest.mark.parametrize(
    ("options", "refused", "instead"),
    [
        (["--gradient_accumulation_steps", "4"], r"--gradient_accumulation_steps \(4\)", "trainer.micro_batch"),
        (["--gradient-clipping=0.5"], r"--gradient_clipping \(0.5\)", "optim.clip_norm"),
        (["--use_megatron_lm"], r"--use_megatron_lm \(True\)", "DDP"),
        (["--cpu", "--use_megatron_lm"], r"--use_megatron_lm", "DDP"),
        (["--use_deepspeed"], "--use_deepspeed", "DDP"),
        (["--zero_stage", "2"], r"--zero_stage \(2\)", "DDP"),
        (["--use_fsdp"], "--use_fsdp", "DDP"),
        (["--fsdp_version", "2"], r"--fsdp_version \(2\)", "DDP"),
        (["--parallelism_config_tp_size", "2"], "--parallelism_config_tp_size", "DDP"),
        (["--tpu"], r"--tpu \(True\)", "GPUs or CPUs"),
        (["--downcast_bf16"], "--downcast_bf16", "GPUs or CPUs"),
        (["--dynamo_mode", "max-autotune"], "--dynamo_mode", "performance: auto"),
        (["--dynamo_backend", "inductor"], "--dynamo_backend", "performance: auto"),
        (["--fp8_format", "E4M3"], r"--fp8_format \(E4M3\)", "trainer.mixed_precision"),
        (["--max_restarts", "3"], r"--max_restarts \(3\)", "init --accelerate cpu"),
        (["--tee", "3"], r"--tee \(3\)", "init --accelerate cpu"),
    ],
)
def test_options_that_no_process_would_hear_of(options, refused, instead):
    with pytest.raises(LaunchError, match=rf"{refused}.* does nothing .*{instead}"):
        check_launch({}, command=[*LAUNCH, *options, "train.py"])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--cpu", "--num_processes=1", "--mixed_precision", "no", "--quiet"],
        ["--gradient_accumulation_steps", "1", "--dynamo_backend", "no", "--max_restarts", "0"],
        ["--multi_gpu", "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "node0", "--debug"],
    ],
)
def test_options_that_are_heeded(options):
    check_launch({}, command=[*LAUNCH, *options, "train.py", "--tpu"])
    check_launch(CONNECTED, command=[*LAUNCH, *options, "--max_restarts", "3", "--tee", "3", "train.py"])


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("megatron_lm_config: {megatron_lm_tp_degree: 2}", "DDP"),
        ("deepspeed_config: {gradient_accumulation_steps: 4}", "DDP"),
        ("fsdp_config: {fsdp_version: 2}", "DDP"),
        ("parallelism_config: {parallelism_config_tp_size: 2}", "DDP"),
        ("fp8_config: {backend: TE}", "trainer.mixed_precision"),
        ("downcast_bf16: true", "GPUs or CPUs"),
        ("tpu_use_cluster: true", "GPUs or CPUs"),
    ],
)
@pytest.mark.parametrize("env", [SINGLE, CONNECTED])
def test_lines_of_the_launchers_file_that_no_process_would_hear_of(tmp_path, line, instead, env):
    file = tmp_path / "launch.yaml"
    file.write_text(f"distributed_type: MULTI_GPU\nnum_processes: 1\n{line}\n")
    name = line.split(":")[0]
    with pytest.raises(LaunchError, match=rf"launch.yaml: {name} .* does nothing .*{instead}"):
        check_launch(env, command=[*LAUNCH, "--config_file", str(file), "train.py"])


def test_what_accelerate_config_writes_passes(tmp_path):
    file = tmp_path / "launch.yaml"
    written = "tpu_env: []\ntpu_use_cluster: false\ntpu_use_sudo: false\ndowncast_bf16: 'no'\nrdzv_backend: static\n"
    file.write_text(f"distributed_type: 'NO'\nmain_training_function: main\n{written}")
    check_launch(SINGLE, command=[*LAUNCH, "--config_file", str(file), "train.py"])


def test_options_of_another_launcher_are_its_own():
    check_launch({}, command=[PYTHON, "train.py", "--gradient_accumulation_steps", "4"])
