import torch

from tests.benchmarks.loops.careful_loop import ahead, train
from tests.benchmarks.loops.looped import check_learning


def test_it_learns(tmp_path):
    check_learning(train, tmp_path)


def test_without_data_path_too(tmp_path):
    check_learning(train, tmp_path, on_device=True)


def test_batches_are_those_of_the_loader():
    batches = [(torch.full((1,), number), torch.full((1,), -number)) for number in range(4)]
    assert [image.item() for image, _ in ahead(batches, torch.device("cpu"))] == [0, 1, 2, 3]
