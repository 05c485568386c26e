import torch
from safetensors.torch import load

from unetdist.train.snapshot import DTYPE_NAMES, HostCopy


def test_the_bytes_are_a_file_that_safetensors_reads():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}.{shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype in DTYPE_NAMES
        for shape in [(), (0, 3), (3,), (2, 5)]
    }
    found = load(bytes(HostCopy().take(tensors)))
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].equal(value), name


def test_values_are_kept_whatever_their_strides_and_gradients():
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {"strided": images, "turned": torch.randn(3, 4).T, "trained": torch.ones(2, requires_grad=True)}
    found = load(bytes(HostCopy().take(tensors)))
    assert all(found[name].equal(value) for name, value in tensors.items())


def test_a_copy_stays_as_it_was_while_training_goes_on():
    weight = torch.zeros(4)
    data = HostCopy().take({"weight": weight})
    weight.add_(1)
    assert load(bytes(data))["weight"].equal(torch.zeros(4))


def test_the_next_copy_uses_the_same_memory_also_where_it_is_smaller():
    copy = HostCopy()
    copy.take({"a": torch.zeros(1000)})
    memory = copy._memory.data_ptr()
    assert load(bytes(copy.take({"b": torch.ones(3)})))["b"].equal(torch.ones(3))
    assert copy._memory.data_ptr() == memory
    assert load(bytes(copy.take({"c": torch.ones(5000)})))["c"].equal(torch.ones(5000))
