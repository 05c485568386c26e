import pytest

from unetdist.errors import ConfigError
from unetdist.model.config import UNetConfig, check_norm


def test_presets_give_widths_and_widths_overrule_them():
    assert UNetConfig().level_widths == (16, 32, 64, 128, 256)
    assert UNetConfig(preset="classic").level_widths == (64, 128, 256, 512, 1024)
    assert UNetConfig(preset="classic", widths=(3, 4)).level_widths == (3, 4)


def test_a_preset_may_have_residual_blocks_and_they_can_be_overruled():
    assert UNetConfig().level_blocks is None
    residual = UNetConfig(preset="residual")
    assert (residual.level_widths, residual.level_blocks) == (
        (32, 64, 128, 256, 512, 512),
        (1, 2, 2, 4, 4, 2),
    )
    assert UNetConfig(preset="residual", widths=(4,) * 6).level_blocks == (1, 2, 2, 4, 4, 2)
    assert UNetConfig(preset="residual", widths=(4, 8), encoder_blocks=1).level_blocks == 1
    assert not UNetConfig(preset="residual", encoder_blocks=0).level_blocks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": ()}, r"widths has 0 levels, and must have 1 to 16; use a list"),
        ({"widths": (8, 0)}, r"widths \(\[8, 0\]\) must be channel counts from 1 to 65536"),
        ({"widths": (8,) * 5000}, r"widths has 5000 levels, and must have 1 to 16"),
        ({"widths": (10**9, 10**9)}, r"widths \(\[1000000000, .* channel counts from 1 to 65536"),
        ({"encoder_convs": 10**9}, r"encoder_convs \(1000000000\) must be from 1 to 64"),
        ({"in_channels": 10**9}, r"in_channels \(1000000000\) must be from 1 to 65536"),
        (
            {"encoder_convs": 0},
            r"encoder_convs \(0\) must be from 1 to 64, .*; use one number or a list of 5",
        ),
        ({"encoder_convs": (2, 2)}, r"encoder_convs \(\(2, 2\)\) must be .* for 5 widths; .* a list of 5"),
        ({"decoder_convs": (2, 2, 0, 2)}, r"decoder_convs \(.*\) must be from 1 to 64, .* a list of 4"),
        ({"encoder_blocks": (2, 2)}, r"encoder_blocks \(\(2, 2\)\) must be .* for 5 widths; .* a list of 5"),
        ({"encoder_blocks": (1, 0), "widths": (4, 8)}, r"encoder_blocks \(\(1, 0\)\) must be from 1 to 64"),
        (
            {"preset": "residual", "widths": (8, 16)},
            r"encoder_blocks \(\(1, 2, .*for 2 widths; .* a list of 2",
        ),
        ({"drop_path": -0.1}, r"drop_path \(-0.1\) must be at least 0 and below 1; use 0"),
        ({"drop_path": 0.1}, r"drop_path \(0.1\) must have residual blocks to drop; use encoder_blocks: 2"),
        ({"dropout": 1.0}, r"dropout \(1.0\) must be at least 0 and below 1; use 0"),
        ({"pretrained": True}, r"pretrained \(true\) must have a model.encoder; use a name such as"),
        (
            {"encoder": "resnet34", "decoder_convs": (1, 2, 1, 1)},
            r"decoder_convs \(.*\) must be one number with",
        ),
        ({"in_channels": 0}, r"in_channels \(0\) must be from 1 to 65536; use 3 for RGB"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        UNetConfig(**settings)


def test_sync_batch_without_gpus_is_refused():
    config = UNetConfig(norm="sync_batch")
    check_norm(config, device_type="cpu", world_size=1)
    check_norm(config, device_type="cuda", world_size=2)
    check_norm(UNetConfig(norm="batch"), device_type="cpu", world_size=2)
    with pytest.raises(
        ConfigError, match=r"model.norm \(sync_batch\) must have a GPU .* 2 processes.*; use group"
    ):
        check_norm(config, device_type="cpu", world_size=2)
