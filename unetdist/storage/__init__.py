"""Files that are whole or absent, on a disk or behind a URL.

In: bytes and a place (a path, s3://, gs://, hf://, https://). Out: the same bytes later, or an error that names the
place. Also locks between processes, retries of transient errors, and folders of checkpoints.
"""
