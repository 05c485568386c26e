"""`unetdist equivalence` as a user types it; its runs are written by hand, not trained."""

import pytest

from tests.commands.equivalence_runs import values_of, write_data
from tests.commands.test_equivalence import line
from unetdist.cli import settings
from unetdist.commands.equivalence import command as script
from unetdist.commands.equivalence import runs as equivalence
from unetdist.errors import ConfigError, DataError
from unetdist.storage.files import write_text


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path)
    write_text(tmp_path / "config.yaml", settings.to_yaml(values_of(tmp_path)))
    return ["--config", str(tmp_path / "config.yaml")]


@pytest.fixture
def trained(monkeypatch):
    """Numbers of processes that were trained: all equal, except 3 and 4."""
    sizes = []

    def train(config, world_size, *, steps, **_):
        sizes.append(world_size)
        amounts = {"model.head.bias": 0.5} if world_size in (3, 4) else {}
        return [line(step, amounts) for step in range(steps + 1)]

    monkeypatch.setattr(equivalence, "train", train)
    return sizes


def test_equal_worlds_end_with_0(config, trained, capsys):
    assert script.main([*config, "--world", "1,2"]) == 0
    output = capsys.readouterr().out
    assert "tiny: compared with 1 process" in output
    assert "As promised" in output
    assert trained == [1, 2]


def test_a_broken_promise_ends_with_1(config, trained, capsys):
    assert script.main([*config, "--world", "1,2,4", "--steps", "3"]) == 1
    output = capsys.readouterr().out
    assert "The promise is broken" in output
    assert "head.bias" in output


def test_a_difference_that_settings_allow_ends_with_0(config, trained, capsys):
    assert script.main([*config, "--world", "1,3"]) == 0
    assert "Equal bits are not promised" in capsys.readouterr().out


def test_what_a_run_would_refuse_is_refused_before_any_is_started(config, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"global_batch_size \(12\) must be divisible by the processes \(5\)"):
        script.main([*config, "--world", "1,5"])
    with pytest.raises(ConfigError, match=r"unknown option '--model.nrom'; did you mean 'model.norm'"):
        script.main([*config, "--model.nrom", "group"])
    with pytest.raises(DataError, match=r"no manifest.json here"):
        script.main([*config, "--data.train", str(tmp_path / "absent")])
    assert trained == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "1,1"], "invalid numbers of processes: '1,1'; use 1,2,4"),
        (["--world", "2"], "invalid numbers of processes: '2'; use 1,2,4"),
        (["--world", "two"], "invalid numbers of processes: 'two'; use 1,2,4"),
        (["--steps", "0"], "invalid count: '0'; use a whole number over 0"),
    ],
)
def test_words_that_are_not_understood(words, message):
    with pytest.raises(ConfigError, match=message):
        script.main(["--config", "any.yaml", *words])


def test_a_process_of_a_run_records_its_steps(config, monkeypatch):
    calls = []
    monkeypatch.setattr(equivalence, "record", lambda *args: calls.append(args))
    assert script.main(["--record", "3", *config]) == 0
    [(recorded, steps)] = calls
    assert (recorded.name, steps) == ("tiny", 3)
