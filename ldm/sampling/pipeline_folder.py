"""Pipeline folders on disk and on the hub: model card, module file for diffusers, check for missing components."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline
from torch import nn

from ldm.networks.factory import NETWORKS
from odvae.running.commands import with_config
from odvae.running.errors import InputError
from odvae.running.files import read_json, write_text
from odvae.running.text import shorten
from odvae.video_vae import vae_classes
from odvae.weights.pretrained import loading
from odvae.weights.weights_files import why_incomplete

# The classes of the parts that are this project's, imported with the pipeline's class: diffusers takes classes that are
# not its own only from modules that the process has imported already.
PARTS = (*vae_classes().values(), *NETWORKS.values())

# A file in every saved pipeline, through which DiffusionPipeline.from_pretrained finds the class.
PIPELINE_MODULE = '''"""The class of this pipeline, from the installed package odvae."""

from ldm.pipeline import TextToVideoPipeline

__all__ = ["TextToVideoPipeline"]
'''


if TYPE_CHECKING:  # what it is mixed into
    from diffusers import DiffusionPipeline as _Mixed
else:
    _Mixed = object


class PipelineFolderMixin(_Mixed):
    """Saving, publishing and loading of our pipeline; must precede diffusers' class among the base classes.

    `config.model_card` is the text of the folder's README.md, or None.
    """

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does; `DiffusionPipeline.from_pretrained` also loads the folder.

        The latter needs `trust_remote_code=True`, and this package installed.
        """
        self._add_card_and_module(Path(save_directory))
        super().save_pretrained(str(save_directory), *args, **kwargs)

    def _upload_folder(self, working_dir: str, *args: Any, **kwargs: Any) -> Any:
        """Called last by `push_to_hub`, which has replaced our model card with an empty one."""
        self._add_card_and_module(Path(working_dir))
        return super()._upload_folder(working_dir, *args, **kwargs)

    def _add_card_and_module(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "pipeline.py", PIPELINE_MODULE)
        if self.config.model_card is not None:
            write_text(folder / "README.md", self.config.model_card)

    def to_json_string(self) -> str:
        """model_index.json, in which the class is named with its module file, as diffusers requires of custom ones."""
        values = json.loads(super().to_json_string())
        values["_class_name"] = ["pipeline", type(self).__name__]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> PipelineFolderMixin:
        """Load as diffusers does. Raises InputError for components that are missing or not whole, naming them."""
        folder = Path(pretrained_model_name_or_path)
        if folder.exists():
            check_parts(folder, given=kwargs.keys(), allowed=(cls.__name__, "TextToVideoPipeline"))
        with loading(str(pretrained_model_name_or_path), pretrained_model_name_or_path, "a pipeline"):
            pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if kwargs.get("device_map") is None:
            _check_all_there(pipeline, folder)
        return pipeline

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict:
        """model_index.json without the module file, which is not needed where this class itself loads it."""
        values = super()._dict_from_json_file(json_file)
        if isinstance(values.get("_class_name"), list):
            values["_class_name"] = values["_class_name"][-1]
        return values


def check_parts(folder: Path, given: Collection[str] = (), allowed: Collection[str] = ("TextToVideoPipeline",)) -> None:
    """Raise InputError for what is no folder of such a pipeline, or lacks a component of its model_index.json.

    `given` names the components that come from elsewhere.
    """
    path = folder / "model_index.json"
    if not folder.is_dir():
        raise InputError(f"{folder} is no pipeline folder, but a file")
    if not path.is_file():
        export = f"; it is a run folder: export it ({with_config('export_pipeline')}), and load {folder / 'pipeline'}"
        raise InputError(
            f"{folder} is no pipeline folder: it has no model_index.json{export if (folder / 'ldm').is_dir() else ''}"
        )
    if problem := why_incomplete(path):
        raise InputError(f"{path} {problem}")
    index = read_json(path)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    kind = kind[-1] if isinstance(kind, list) and kind else kind
    if kind not in allowed:
        raise InputError(f"{path}: _class_name is {kind!r}; this class loads {' or '.join(sorted(set(allowed)))}")
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] and name != "_class_name"]
    parts = [name for name in parts if name not in given]
    missing = [name for name in parts if not (folder / name).is_dir()]
    missing = missing or [
        f"{name}/{_config_of(name)}" for name in parts if not (folder / name / _config_of(name)).exists()
    ]
    if missing:
        raise InputError(f"{folder}: missing parts: {', '.join(missing)}; export the run again")


def _config_of(part: str) -> str:
    """The file that every saved component of this name has."""
    return {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")


def _check_all_there(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Raise InputError for components whose weights lack tensors: diffusers leaves those without values."""
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and (
            lacking := [key for key, value in part.named_parameters() if value.is_meta]
        ):
            raise InputError(f"{folder / name}: its weights lack {shorten(sorted(lacking))}; export the run again")
