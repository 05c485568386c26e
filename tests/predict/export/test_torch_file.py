import io

import torch

from tests.predict.export.models import picture, saved_model
from unetdist.predict.export.torch_file import open_torch, write_torch
from unetdist.predict.export.trace import trace


def test_a_written_graph_runs_and_tells_its_classes(tmp_path):
    saved, image = saved_model(), picture().image
    file = tmp_path / "model.pt2"
    write_torch(trace(saved, argmax=False, precision="fp32"), file, {"classes": "[1]"})
    assert open_torch(file)(image).equal(saved.model(image))
    inside = {"classes": ""}
    torch.export.load(io.BytesIO(file.read_bytes()), extra_files=inside)
    assert inside == {"classes": "[1]"}
