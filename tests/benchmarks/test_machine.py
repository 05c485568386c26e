import subprocess

from tests.benchmarks import machine


def test_facts_name_the_machine_and_the_command():
    facts = machine.machine_facts(["launch/benchmark.py", "data", "--work", "a b"])
    assert facts["command"].endswith("launch/benchmark.py data --work 'a b'")
    assert facts["cores"] >= 1
    assert facts["cpu"]
    assert facts["date"].endswith("+00:00")


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.machine_facts([])["commit"] is None


def test_a_changed_checkout_is_marked(monkeypatch, tmp_path):
    (tmp_path / "unetdist").mkdir()
    (tmp_path / "unetdist" / "a.py").write_text("1")
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    clean = machine.machine_facts([])["commit"]
    (tmp_path / "unetdist" / "a.py").write_text("2")
    assert machine.machine_facts([])["commit"] == f"{clean}+"
