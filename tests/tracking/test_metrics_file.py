import json

from unetdist.tracking.metrics_file import MetricsFile


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_object_per_line_with_null_for_what_is_no_number(tmp_path):
    file = MetricsFile(tmp_path / "run/metrics.jsonl")
    file.continue_after(0)
    file.write({"train/loss": 0.5}, 10)
    assert lines(file.path) == [{"step": 10, "train/loss": 0.5}]  # there at once, not at the end
    file.write({"val/miou": float("nan"), "val/loss": float("inf"), "val/iou/Bäume": 1.0}, 10)
    assert lines(file.path)[1] == {"step": 10, "val/miou": None, "val/loss": None, "val/iou/Bäume": 1.0}


def test_a_continued_run_repeats_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    killed.continue_after(0)
    for step in (10, 20, 20, 30):
        killed.write({"train/loss": 1.0}, step)
    path.write_text(path.read_text() + '{"step": 40, "train/lo')
    continued = MetricsFile(path)
    continued.continue_after(10)
    for step in (20, 30, 40):
        continued.write({"train/loss": 2.0}, step)
    assert [(line["step"], line["train/loss"]) for line in lines(path)] == [(10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)]


def test_a_validation_that_is_made_up_for_does_not_cost_the_training_line_of_its_step(tmp_path):
    stopped = MetricsFile(tmp_path / "metrics.jsonl")
    stopped.continue_after(0)
    stopped.write({"train/loss": 1.0}, 10)
    for _ in range(2):  # killed before its checkpoint was written anew, it is made up for once more
        continued = MetricsFile(stopped.path)
        continued.continue_after(10)
        continued.write({"val/miou": 0.5}, 10)
    assert lines(stopped.path) == [{"step": 10, "train/loss": 1.0}, {"step": 10, "val/miou": 0.5}]
