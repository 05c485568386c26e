import io
import json
import os
import sys
from itertools import count, islice

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.peers import protocol
from tests.benchmarks.peers.protocol import Job, Rounds, crop_pil, installed, serve, window

JOB = Job("pictures", "work", crop=4, batch_size=2)


def numbered():
    for number in count():
        value = number % 256
        yield np.full((2, 4, 4, 3), value, np.uint8), np.full((2, 4, 4), value, np.uint8)


def test_a_round_counts_whole_batches_after_those_prepared_ahead():
    taken = []
    batches = ((taken.append(number), None) for number in count())
    times = Rounds(JOB, batches).time(1e-6)
    assert len(taken) == JOB.lead_batches + times["samples"] / JOB.batch_size
    assert times["samples"] >= JOB.batch_size
    assert times["seconds"] > 0


def test_saved_batches_are_stacked(tmp_path):
    Rounds(JOB, numbered()).save(str(tmp_path / "b.npz"), 3)
    with np.load(tmp_path / "b.npz") as saved:
        assert saved["images"].shape == (3, 2, 4, 4, 3)
        assert saved["masks"][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_format_is_written_once_and_again_after_a_failure(tmp_path):
    job = Job("pictures", str(tmp_path), crop=4, batch_size=2)
    calls = []

    def fail(folder):
        calls.append(folder)
        raise OSError

    with pytest.raises(OSError):
        job.format_once("mds", fail)
    assert job.format_once("mds", calls.append) == job.format_once("mds", calls.append)
    assert calls == [str(tmp_path / "mds")] * 2


def test_windows_reach_every_offset_and_flip_half():
    rng = np.random.default_rng(0)
    drawn = [window((6, 7), 4, rng) for _ in range(200)]
    assert {top for top, _, _ in drawn} == {0, 1, 2}
    assert {left for _, left, _ in drawn} == {0, 1, 2, 3}
    assert 60 < sum(flip for _, _, flip in drawn) < 140


def test_image_and_mask_are_cut_alike():
    mask = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image, rng = np.stack([mask] * 3, axis=-1), np.random.default_rng(0)
    for _ in range(20):
        cut, cut_mask = crop_pil(Image.fromarray(image), Image.fromarray(mask), 4, rng)
        assert cut.shape == (4, 4, 3)
        assert (cut[..., 0] == cut_mask).all()


def test_only_packages_that_are_there_have_versions():
    assert set(installed("numpy", "no-such-package")()) == {"numpy"}


def answers(monkeypatch, batches, requests, extras=None):
    """What `serve` replies to requests, in this process."""
    read, write = os.pipe()
    lines = "".join(json.dumps(request) + "\n" for request in requests)

    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    monkeypatch.setattr(protocol.os, "dup", lambda _: write)
    monkeypatch.setattr(protocol.os, "dup2", lambda *_: None)
    serve(batches, installed("numpy"), extras)
    with os.fdopen(read) as file:
        return [json.loads(line) for line in islice(file, len(requests))]


OPEN = {"do": "open", "pictures": "p", "work": "w", "crop": 4, "batch_size": 2}


def test_requests_are_answered_line_by_line(monkeypatch):
    opened, timed, versions, extra = answers(
        monkeypatch,
        lambda job: numbered(),
        [OPEN, {"do": "time", "seconds": 0.001}, {"do": "versions"}, {"do": "twice", "value": 4}],
        {"twice": lambda job, value: job.crop + value},
    )
    assert opened == {}
    assert timed["samples"] >= 2
    assert list(versions) == ["numpy"]
    assert extra == 8


def test_a_failure_is_a_reply_too(monkeypatch, capsys):
    def fail(job):
        raise ValueError("no such shard")

    def cannot_import(job):
        raise ModuleNotFoundError("No module named 'streaming'", name="streaming")

    (failed,) = answers(monkeypatch, fail, [OPEN])
    assert failed == {"error": "ValueError: no such shard", "missing": None}
    (missing,) = answers(monkeypatch, cannot_import, [OPEN])
    assert missing["missing"] == "streaming"
    assert "no such shard" in capsys.readouterr().err
