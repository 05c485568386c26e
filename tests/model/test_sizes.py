import pytest
import torch

from unetdist.model.sizes import crop, pad


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 1), (8, 8)), ((3, 9), (8, 12)), ((8, 12), (8, 12)), ((13, 4), (16, 8))]
)
def test_the_last_row_and_column_are_repeated_to_sizes_that_halve_evenly(size, padded):
    x = torch.randn(2, 3, *size)
    out = pad(x, 4)
    assert out.shape == (2, 3, *padded)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        out[..., size[0] - 1 :, :], out[..., size[0] - 1 : size[0], :].expand_as(out[..., size[0] - 1 :, :])
    )
    assert torch.equal(crop(out, *size), x)
