"""By which model and settings the results in a folder were made: those of two are not mixed."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from unetdist.cli import json_records
from unetdist.distributed.collectives import World, broadcast
from unetdist.errors import ConfigError
from unetdist.model.inference import InferenceConfig
from unetdist.model.saved_model import SavedModel
from unetdist.storage import files as storage

# In the output folder: by which model and settings its results were made.
RECIPE_FILE = ".unetdist_predict.json"


def check_recipe(saved: SavedModel, inference: InferenceConfig, out: Path, *, overwrite: bool, world: World) -> None:
    """Collective. Results of another model are not mixed with those of this one; a note in `out` tells them apart.

    Raises:
        ConfigError: `out` holds some, and they are not to be overwritten.
    """
    problem = None
    if world.is_main:
        digest = hashlib.sha256()
        for name, tensor in saved.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        recipe: dict[str, Any] = {
            "weights": digest.hexdigest(),
            "inference": dataclasses.asdict(inference),
            "image_range": saved.image_range,
        }
        recipe = json.loads(json.dumps(recipe))
        try:
            former = json_records.build(dict[str, Any], json_records.parse(storage.read_file(out / RECIPE_FILE)))
        except (OSError, ValueError):
            former = recipe
        what = [name for name in recipe | former if former.get(name) != recipe.get(name)]
        if what and not overwrite and any(out.rglob("*_ids.*")):
            problem = (
                f"--out ({out}) holds results of other {' and '.join(what)}; give another folder, or --overwrite "
                "to replace them."
            )
        elif what or not (out / RECIPE_FILE).exists():
            try:
                storage.write_json(out / RECIPE_FILE, recipe)
            except OSError as error:
                problem = f"--out ({out}) cannot be written to ({error}); give another folder."
    problem = broadcast(problem, world.device)
    if problem:
        raise ConfigError(problem)
