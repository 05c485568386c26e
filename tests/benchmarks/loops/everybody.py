"""Whose training loops are compared."""

from tests.benchmarks.contenders import Contender

_LOOPS = "tests.benchmarks.loops"

OURS = Contender("ours", "ours", f"{_LOOPS}.ours", arguments=("auto",))

ON_GPU = tuple(
    Contender(f"ours-{word}", f"ours, {title}", f"{_LOOPS}.ours", arguments=("auto", word))
    for word, title in (
        ("graphs", "with CUDA graphs"),
        ("no-graphs", "without CUDA graphs"),
        ("all-kernels", "cuDNN tries all kernels"),
    )
)
"""Ours with a part of the fast path given or taken, whatever the facts say; on a GPU only."""

SELVES = (Contender("ours-off", "ours, performance: off", f"{_LOOPS}.ours", arguments=("off",)), *ON_GPU)
"""Ours in other ways: as it is without the fast path, and with other parts of it."""

PEERS = (
    Contender("accelerate", "Accelerate", f"{_LOOPS}.accelerate_loop"),
    Contender("accelerate-best", "Accelerate, best flags", f"{_LOOPS}.accelerate_loop", arguments=("best",)),
    Contender("lightning", "Lightning", f"{_LOOPS}.lightning_loop", ("lightning",)),
    Contender(
        "lightning-best",
        "Lightning, best flags",
        f"{_LOOPS}.lightning_loop",
        ("lightning",),
        arguments=("best",),
    ),
    Contender("milesial", "as milesial/Pytorch-UNet", f"{_LOOPS}.amp_loop"),
    Contender(
        "milesial-best", "as milesial/Pytorch-UNet, best flags", f"{_LOOPS}.amp_loop", arguments=("best",)
    ),
    Contender("nnunet", "as nnU-Net", f"{_LOOPS}.nnunet_loop"),
    Contender("nnunet-best", "as nnU-Net, best flags", f"{_LOOPS}.nnunet_loop", arguments=("best",)),
    Contender("careful", "the best a careful user would write", f"{_LOOPS}.careful_loop"),
)

EVERYBODY = (*SELVES, *PEERS)
"""All that `--against` knows beside ours, in the order of the table."""
