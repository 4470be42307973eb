"""`save_dictionary`: a Dictionary into a folder in the SAELens layout."""

import json
from pathlib import Path

from tl_bilinear.checkpoints.dictionaries import saelens
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.optimisation.files import whole_folder


def save_dictionary(dictionary: Dictionary, folder: str | Path, *, model_name: str = "") -> Path:
    """Save a dictionary, in its dtype, as SAELens reads it; the folder, all of it or nothing.

    Args:
        folder: a new or empty one.
        model_name: the model that it was trained on, for cfg.json.

    Raises:
        CheckpointError: a folder that is not empty, or an activation that SAELens lacks.
    """
    from safetensors.torch import save_file

    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not an empty folder: give another one")
    config, tensors = saelens.contents(dictionary, model_name)
    with whole_folder(folder) as partial:
        save_file(tensors, partial / saelens.WEIGHTS)
        (partial / saelens.WEIGHTS).chmod(0o644)
        text = json.dumps(config, indent=2) + "\n"
        (partial / saelens.CONFIG).write_text(text, encoding="utf-8")
    return folder
