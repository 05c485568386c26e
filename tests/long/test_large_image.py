"""An image of 24 megapixels, predicted in windows by the command that a user types, on a machine with little memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdist.data.labels import Palette
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import save_model
from unetdist.model.unet import UNet

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
NUM_CLASSES = 11
GIB = 2**30

PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        print(*(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    unet = UNet(UNetConfig(), NUM_CLASSES, mean=[127.0] * 3, std=[60.0] * 3)
    records = [
        {"index": i, "id": i, "name": f"class {i}", "color": [20 * i, 255 - 20 * i, 99]} for i in range(NUM_CLASSES)
    ]
    palette = Palette.from_records(records)
    save_model(folder, unet.state_dict(), model=unet.config, palette=palette, resize=None, facts={})
    return folder


def predicted(model, folder, width, height, *words):
    """Peak memory in bytes of a process that predicted an image of this size, and the ids."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.stack([np.sin(x / 90), np.cos(y / 70), np.sin((x + y) / 110)], axis=2)
    picture = folder / f"{width}x{height}.jpg"
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(picture, quality=90)
    script = [ROOT / "launch/predict.py", "--device", "cpu", "--model", model, "--input", picture, "--out", folder]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, [*script, *words])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with Image.open(folder / f"{picture.stem}_ids.png") as ids:
        return int(done.stderr.split()[-1]) * 1024, np.asarray(ids)


@pytest.mark.parametrize("extras", [(), ("--overlay",)], ids=["ids", "overlay"])
def test_memory_above_the_model_is_bounded_by_the_window(model, tmp_path, extras):
    base, _ = predicted(model, tmp_path, 64, 64, "--window", "512", "512", *extras)
    peak, ids = predicted(model, tmp_path, 6000, 4000, "--window", "512", "512", *extras)
    print(f"\n6000x4000 in windows of 512x512 {extras}: {(peak - base) / GIB:.2f} GiB above the model")
    assert ids.shape == (4000, 6000)
    assert len(np.unique(ids)) > 1
    assert peak - base < 1.5 * GIB
