import pytest

from unetdist.data.augment import AugmentConfig
from unetdist.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"crop_size": (0, 9)},
            r"augment.crop_size \(\[0, 9\]\) must be a height and a width over 0; use \[256",
        ),
        ({"flip_vertical": 1.5}, r"augment.flip_vertical \(1.5\) must be from 0 to 1; use 0.1"),
        ({"classmix": 1.5}, r"augment.classmix \(1.5\) must be from 0 to 1; use 0.1"),
        (
            {"cutmix": 0.6, "classmix": 0.5},
            r"augment.cutmix \(0.6\) and augment.classmix \(0.5\) must add up to at most 1",
        ),
        ({"native_epochs": -1}, r"augment.native_epochs \(-1\) must be at least 0; use 0 for none"),
        ({"hue": 0.7}, r"augment.hue \(0.7\) must be from 0 to 0.5; use 0.1"),
        ({"contrast": -1}, r"augment.contrast \(-1\) must be from 0 to 1; use 0.1"),
        (
            {"scale_min": 2.0, "crop_size": (9, 9)},
            r"scale_min \(2.0\) must be over 0 and at most augment.scale_max \(1.0\); use 0.5 and 2",
        ),
        ({"scale_min": 0.0, "crop_size": (9, 9)}, r"scale_min \(0.0\) must be over 0"),
        (
            {"scale_max": 2.0},
            r"scale_max \(2.0\) must be 1 without augment.crop_size; set",
        ),
        ({"quarter_turns": 0.5}, r"quarter_turns \(0.5\) must be 0 without augment.crop_size; set"),
        ({"rare_class_crop": 0.5}, r"rare_class_crop \(0.5\) must be 0 without augment.crop_size; set"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**options)
