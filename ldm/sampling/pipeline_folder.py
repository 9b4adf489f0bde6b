"""Pipeline folders on disk and on the hub: model card, module file for diffusers, check for missing components."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odvae.running.errors import InputError
from odvae.running.files import read_json, write_text

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
        """Load as diffusers does. Raises InputError for a folder with missing components, naming them."""
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            check_parts(folder)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict:
        """model_index.json without the module file, which is not needed where this class itself loads it."""
        values = super()._dict_from_json_file(json_file)
        if isinstance(values.get("_class_name"), list):
            values["_class_name"] = values["_class_name"][-1]
        return values


def check_parts(folder: Path) -> None:
    """Raise InputError for a folder that is not a pipeline's, or lacks a component of its model_index.json."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is no pipeline folder: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] and name != "_class_name"]
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise InputError(f"{folder}: missing parts: {', '.join(missing)}; export the run again")
