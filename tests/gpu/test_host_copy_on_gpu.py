import pytest
import torch
from safetensors.torch import load

from unetdist.train.checkpoint import Snapshot

pytestmark = pytest.mark.gpu


def test_the_copy_of_a_gpu_is_pinned_and_complete():
    tensors = {
        "a": torch.randn(1000, 1000, device="cuda"),
        "strided": torch.randn(8, 64, 32, 32, device="cuda").to(memory_format=torch.channels_last),
        "step": torch.ones(()),
    }
    copy = Snapshot()
    found = load(bytes(copy.take(tensors)))
    assert copy._memory.is_pinned()
    assert all(found[name].equal(value.cpu()) for name, value in tensors.items())
