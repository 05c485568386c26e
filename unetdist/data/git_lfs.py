"""Files that Git LFS has not fetched yet: the pointer in their place is a few lines of text."""

from unetdist.errors import DataError

START = b"version https://git-lfs.github.com/spec/"
"""How every pointer begins."""


def refuse_pointer(data: bytes, what: str) -> None:
    """`DataError` where the beginning of a file, `data`, is that of a pointer; `what` it should have been."""
    if data.startswith(START):
        raise DataError(
            f"{what} was not fetched, only its Git LFS pointer is there; run `git lfs pull` in its repository."
        )
