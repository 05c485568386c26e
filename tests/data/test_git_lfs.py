import pytest

from unetdist.data.decode import decode_image, decode_mask, refuse_pointer
from unetdist.data.labels.mask_file import decode_codes as decode
from unetdist.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


def test_a_pointer_is_told_by_its_name_and_remedy():
    refuse_pointer(b"version 2 of the labels", "the label file")
    with pytest.raises(
        DataError, match=r"^the label file was not fetched, .* Git LFS pointer .* `git lfs pull`"
    ):
        refuse_pointer(POINTER, "the label file")


@pytest.mark.parametrize("read", [lambda data: decode_image(data, 3), decode_mask, decode])
def test_pictures_and_masks_that_are_pointers(read):
    with pytest.raises(DataError, match="git lfs pull"):
        read(POINTER)
