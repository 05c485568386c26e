"""Former name of a part of `hardware`, for modules that still import it."""

from unetdist.distributed.hardware import free_bytes as free_bytes
from unetdist.distributed.hardware import keep_all_freed as keep_all_freed
from unetdist.distributed.hardware import keep_freed as keep_freed
