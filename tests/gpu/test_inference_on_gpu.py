"""Windows, flips and scales on a GPU."""

import pytest
import torch

from unetdist.model.config import InferenceConfig, UNetConfig
from unetdist.model.inference import predict_logits
from unetdist.model.unet import UNet

pytestmark = pytest.mark.gpu


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 90, 130), dtype=torch.uint8, generator=generator)


def test_a_network_that_returns_its_input_gives_back_the_image_exactly(image):
    logits = predict_logits(lambda windows: windows, image.cuda(), inference=InferenceConfig(window=(33, 40)))
    assert logits.is_cuda
    assert logits.cpu().equal(image.float())


@pytest.mark.parametrize(
    "values", [{}, {"flips": True}, {"scales": (0.75, 1.25)}, {"window": (48, 64), "flips": True, "scales": (1.0, 1.5)}]
)
@pytest.mark.parametrize("resize", [None, (80, 60)])
def test_as_on_the_cpu(image, values, resize):
    torch.manual_seed(0)
    network = UNet(UNetConfig(widths=(8, 16)), 5, mean=[127.0] * 3, std=[60.0] * 3).eval()
    inference = InferenceConfig(**values)
    expected = predict_logits(network, image, resize=resize, inference=inference)
    actual = predict_logits(network.cuda(), image.cuda(), resize=resize, inference=inference).cpu()
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
