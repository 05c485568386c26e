"""`unetdist init` in an empty folder, and in one that has its files."""

import re
import shlex

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from unetdist.cli import settings
from unetdist.commands import init
from unetdist.errors import ConfigError
from unetdist.train.config import Config


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_its_settings_are_read_by_train(tmp_path):
    assert init.main(["--dir", str(tmp_path / "new")]) == 0
    assert names(tmp_path / "new") == {"my_data.yaml"}
    words = ["--config", str(tmp_path / "new" / "my_data.yaml")]
    assert settings.parse(Config, words, prog="train", description="").name == "my_data"


@pytest.mark.parametrize("kind", ["cpu", "one_gpu", "one_node", "several_nodes"])
def test_the_command_that_it_prints_finds_the_files_that_it_wrote(kind, tmp_path, capsys):
    init.main(["--dir", str(tmp_path), "--accelerate", kind])
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown[2:-1])) <= 80  # after paths, and before the command of a cluster
    launch, *words = shlex.split(shown[-1])[1:]
    assert launch == "launch"
    args = launch_command_parser().parse_args(words)
    assert yaml.safe_load((tmp_path / args.config_file).read_text())["compute_environment"] == "LOCAL_MACHINE"
    assert (args.module, args.training_script) == (True, "unetdist")
    command, _, file = args.training_script_args
    assert command == "train"
    assert (tmp_path / file).is_file()


@pytest.mark.parametrize("kind", ["one_gpu", "several_nodes"])
def test_every_path_inside_of_them_begins_in_their_folder(kind, tmp_path):
    init.main(["--dir", str(tmp_path), "--slurm", "--accelerate", kind])
    assert names(tmp_path) == {"my_data.yaml", f"{kind}.yaml", "several_nodes.yaml", "train.sbatch"}
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert not re.search(r"\b(configs|launch)/", text)
        assert set(re.findall(r"--config(?:_file)? (\w\S+)", text)) <= names(tmp_path)


def test_what_exists_is_kept_and_named(tmp_path, capsys):
    (tmp_path / "my_data.yaml").write_text("mine")
    init.main(["--dir", str(tmp_path), "--slurm"])
    assert (tmp_path / "my_data.yaml").read_text() == "mine"
    assert names(tmp_path) == {"my_data.yaml", "several_nodes.yaml", "train.sbatch"}
    assert re.findall(r"(?m)^kept .*?(\w+\.yaml)$", capsys.readouterr().out) == ["my_data.yaml"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--dir .*file"):
        init.main(["--dir", str(tmp_path / "file" / "inner")])
