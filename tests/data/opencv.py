"""Whether the OpenCV at hand computes as the device does."""

import platform

import cv2

from unetdist.data.device_warp import IS_FIXED_POINT

_CPU_AVX2 = 11
"""Of opencv2/core/cvdef.h."""

FOLLOWED = IS_FIXED_POINT or (
    platform.machine().lower() in ("x86_64", "amd64") and cv2.checkHardwareSupport(_CPU_AVX2)
)
NOT_FOLLOWED = "the device follows the arithmetic that OpenCV 5 has with AVX2"
