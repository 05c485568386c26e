"""Files that are whole or absent, on a disk or behind a URL.

In: bytes and a place (path, s3://, gs://, hf://, https://). Out: the same bytes later, or an error that names
the place; locks, retries, and folders of files that are committed together.
"""
