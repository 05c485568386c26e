"""Options of other tools: which of ours they mean, and what to answer where they mean none or several of ours."""

import re
from collections.abc import Mapping

from unetdist.cli.commands import typed
from unetdist.errors import ConfigError

# Names without their dashes and with `_` for `-`. A text of one word is the option that means exactly the
# same; any other text is the answer. `{shard}` is how that command is typed.
_SHARDS = "training reads shards: write them with `{shard}`, then give --data.train DIR and --data.val DIR."
_GPUS = "--processes N starts N processes, one for each GPU; CUDA_VISIBLE_DEVICES=0,1 before the command chooses GPUs."

_SETTINGS = {
    "lr learning_rate": "optim.lr",
    "epochs num_epochs num_train_epochs": "trainer.max_epochs",
    "steps num_steps total_steps": "trainer.max_steps",
    "workers": "data.num_workers",
    "cfg c": "config",
    "optimizer": "optim.kind",
    "scheduler lr_scheduler": "optim.schedule",
    "wd": "optim.weight_decay",
    "grad_clip clip_grad max_grad_norm gradient_clip_val": "optim.clip_norm",
    "backbone": "model.encoder",
    "run_name exp_name experiment_name": "name",
    "wandb_project": "tracking.project",
    "batch_size batch b train_batch_size per_device_train_batch_size": "trainer.global_batch_size is the number of "
    "samples per step over all processes, validation.batch_size that of images at once in validation; use one of them.",
    "gradient_accumulation_steps accumulate_grad_batches": "trainer.global_batch_size is the number of samples per "
    "step, trainer.micro_batch_size that in the network at once; give these two.",
    "resume resume_from_checkpoint": "the same command continues the run by itself; leave it out.",
    "device cpu": "training takes the GPU if there is one; for the CPU write CUDA_VISIBLE_DEVICES= before the command.",
    "gpus gpu devices num_gpus ngpus num_processes nproc_per_node": _GPUS,
    "local_rank": "start the processes with --processes N, `accelerate launch` or torchrun; leave it out.",
    "imgsz img_size image_size input_size": "augment.crop_size [H,W] is the size of the training crops; "
    "`{shard} --resize WxH` changes the images themselves.",
    "weights init_from ckpt ckpt_path checkpoint_path": "training starts with random weights, or with those of a timm "
    "network: model.encoder NAME and model.pretrained true. To continue a run, give its command again.",
    "model arch architecture": "model.preset (student, classic, residual) is the network; or give model.encoder the "
    "name of a timm network.",
    "output output_dir out out_dir save_dir": "results go to RUNS_DIR/NAME; give --runs_dir DIR and --name NAME.",
    "data dataset data_dir source input images root": _SHARDS,
    "folder": "runs_dir is the folder of runs, data.train that of shards, checkpoint.folder that of checkpoints; use "
    "one of them.",
    "num_classes n_classes nc classes": "the shards know their classes, from the label file; leave it out.",
    "val_split val_fraction validation_split": "`{shard} --val-fraction 0.2` splits the samples.",
    "amp fp16 bf16 half": "give trainer.mixed_precision fp16 or bf16.",
    "wandb use_wandb": "give tracking.tracker wandb.",
    "patience early_stopping": "a run has no early stopping: the best weights of all validations are in RUNS_DIR/NAME/"
    "best; trainer.max_steps or trainer.max_epochs sets its length.",
}

_MODEL = {"weights ckpt checkpoint model_path": "model"}
_OUT = {"output output_dir out_dir save_dir output_path": "out"}
_WORKERS = {"workers": "num-workers", "batch bs b": "batch-size"}

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "train": _SETTINGS,
    "shard": _OUT
    | {
        "num_workers": "workers",
        "image_dir": "images",
        "mask_dir": "masks",
        "source input data data_dir root": "give --images DIR and --masks DIR, or --list FILE or --dataset NAME.",
        "annotations segmentations": "give the folder of the masks as --masks DIR.",
        "classes class_names names": "give the file that lists the classes as --labels FILE.",
        "val_split validation_split val_size test_size": "--val-fraction F is the part of the samples for OUT/val.",
        "imgsz img_size image_size size": "--resize WxH is the size in pixels, such as 480x360; default: unchanged.",
        "resume": "the same command continues by itself; leave it out.",
        "force": "overwrite",
    },
    "evaluate": _MODEL
    | _WORKERS
    | {
        "source input images val": "--data is a folder of shards, as `{shard}` writes it.",
        "output out output_dir": "--json FILE takes all numbers; the table is printed.",
        "device cpu gpu gpus": "scoring takes the GPU if there is one; for the CPU write CUDA_VISIBLE_DEVICES= before "
        "the command.",
        "imgsz img_size image_size": "each image is scored at its own size; --scales changes it, --window cuts it.",
        "amp fp16 bf16 half": "give --mixed-precision fp16 or bf16.",
    },
    "predict": _MODEL
    | _OUT
    | _WORKERS
    | {
        "source image images i": "input",
        "gpu gpus devices": "--device cuda:0 is the first GPU, --device cpu the processor; default: a GPU if there is "
        "one.",
        "imgsz img_size image_size": "each image is predicted at its own size; --scales changes it, --window cuts it.",
        "conf threshold": "each pixel gets its most likely class; --probabilities writes all of them.",
        "resume": "the same command continues by itself; leave it out.",
        "force": "overwrite",
    },
    "report": _OUT
    | {"workers": "num-workers", "run runs name": "give the folders of the runs without an option: {report} runs/x."},
    "export": _MODEL
    | _OUT
    | {
        "format": "the file is ONNX; leave it out.",
        "half fp16": "give --precision fp16.",
        "imgsz img_size image_size dynamic": "the file takes images of any size; leave it out.",
    },
    "init": {"output out output_dir": "dir"},
}


def meant(name: str, table: Mapping[str, str]) -> str | None:
    """The option, without dashes, that a name means exactly; None if the table does not have the name.

    Raises `ConfigError` with the answer to a name that means none of ours, or several.
    """
    plain = name.replace("-", "_")
    text = next((text for names, text in table.items() if plain in names.split()), None)
    if text is not None and " " in text:
        answer = re.sub(r"{(\w+)}", lambda command: typed(command[1]), text)
        raise ConfigError(f"option '{'-' if len(name) == 1 else '--'}{name}': {answer}")
    return text
