"""Whether the OpenCV at hand computes as the device does."""

import platform

import cv2

_CPU_AVX2 = 11
"""Of opencv2/core/cvdef.h."""

FOLLOWED = (
    int(cv2.__version__.split(".")[0]) >= 5
    and platform.machine().lower() in ("x86_64", "amd64")
    and cv2.checkHardwareSupport(_CPU_AVX2)
)
NOT_FOLLOWED = "the device follows the arithmetic of OpenCV 5 with AVX2"
