"""README.md of a folder of latents: what they are of, and how the entries are read (`odvae.shards.dataset_card`)."""

from __future__ import annotations

from ldm.latents.manifest import Manifest
from ldm.latents.text_manifest import TEXT_FOLDER
from odvae.running.account import most_frequent
from odvae.shards.dataset_card import dataset_card

_ABOUT = (
    "Videos encoded as latents by a video VAE, as [WebDataset](https://github.com/webdataset/webdataset) shards, an "
    "entry a clip of `KEY.safetensors` ({tensors}) and `KEY.json` (caption, class, source, first frame). Latents are "
    "as the VAE gives them: `latents_mean` and `latents_std` of each channel, and everything else that they depend on, "
    "are in `manifest.json`, and the settings of `encode_latents` in `experiment.yaml`."
)

# What `datasets` reads of an entry.
_COLUMNS = {
    "safetensors": "binary",
    "json": {
        **dict.fromkeys(("source", "caption", "label"), "string"),
        "captions": ["string"],
        **dict.fromkeys(("start", "frames"), "int64"),
        "fps": "float64",
        "flip": "bool",
    },
    "__key__": "string",
}


def latents_card(manifest: Manifest) -> str:
    """The card of a folder of latents with this manifest."""
    tensors = "`mean` and `std` (c, k, h, w)" if manifest.posterior == "moments" else "`mean` (c, k, h, w)"
    text = "`text` (tokens, width) without padding, its `text_mask`; of further captions `KEY.text1.safetensors`, ..."
    if manifest.separate_text is not None:
        tensors += f"; {text} are in shards of their own, `{TEXT_FOLDER}/*.tar`"
    elif not manifest.lacks_text:
        tensors += f"; {text}"
    data, shards = manifest.data, manifest.shards
    facts = {
        "clips": f"{manifest.train_entries} to train, {manifest.held_out_entries} held out, in {len(shards)} shards",
        "size": f"{sum(record.bytes for record in shards) / 1e6:.1f} MB",
        "of videos": f"{data['frames']} frames of {data['width']}x{data['height']}, stride {data['stride']}",
        "latents": "; ".join(f"{name}: {'x'.join(map(str, shape))}" for name, shape in manifest.buckets.items()),
        "stored as": manifest.dtype,
        "VAE": f"sha256 {manifest.vae_sha256[:16]}",
        "with a caption": f"{manifest.captioned_share:.1%}",
        "text encoder": "" if manifest.lacks_text else f"{manifest.text_encoder}, sha256 {manifest.text_sha256[:16]}",
        "classes": most_frequent(manifest.entries_by_class, 20),
    }
    files = {"default": "*.tar"} | ({"text": f"{TEXT_FOLDER}/*.tar"} if manifest.separate_text is not None else {})
    example = (
        "from datasets import load_dataset\nfrom safetensors.torch import load\n\n"
        'entries = load_dataset("FOLDER", split="train", streaming=True)  # a folder, or a name on the hub\n'
        'tensors = load(next(iter(entries))["safetensors"])\n'
    )
    tags = ("webdataset", "video", "latents", "odvae")
    return dataset_card("Latents of videos", _ABOUT.format(tensors=tensors), facts, example, files, _COLUMNS, tags)
