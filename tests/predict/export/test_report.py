import torch
from rich.console import Console

from unetdist.predict.export.agreement import Agreement
from unetdist.predict.export.report import render


def text_of(*rows, precision):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(render(rows, precision=precision, of="shards/val [1]"))
    return " ".join(console.export_text().split())


def test_a_line_for_each_size_on_a_narrow_screen():
    matrix = torch.tensor([[1, 1], [0, 2]])
    good = Agreement("own size", 4, 1_234_567, 12, 12, 1.5e-6, trained=matrix, exported=matrix)
    bad = Agreement("odd parts", 8, 100, 12, 11)
    text = text_of(good, bad, precision="fp32")
    assert "4 pictures: shards/val [1]" in text
    assert "own size 1,234,567 1.5e-06 12 12 0.5833 0.5833 agrees" in text
    assert "odd parts 100 12 11 DIFFERS" in text
    assert "within 0.0002 of the largest logit" in text


def test_rounded_formats_have_no_ties():
    text = text_of(Agreement("own size", 4, 1000, 12, 0, 0.5), precision="int8")
    assert "own size 1,000 5.0e-01 12 agrees" in text
    assert "mIoU lower by 0.002 at most, or, without masks, 0.5 % of pixels" in text_of(
        Agreement("own size", 4, 1000, 5, 0, 0.5), precision="fp16"
    )
    assert "mIoU lower by 0.01 at most, or, without masks, 2 % of pixels" in text
