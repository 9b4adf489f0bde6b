"""Publishing on the Hugging Face hub: of pipelines and VAEs as models, of shards and latents as data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ldm.latents.card import latents_card
from ldm.latents.manifest import MANIFEST, load_manifest, resized_files
from ldm.networks.provenance import PROVENANCE
from ldm.report.vae_card import vae_card
from odvae.packing.report import card_of, read_report
from odvae.packing.state import REPORT
from odvae.running.errors import InputError
from odvae.running.text import read_text_file
from odvae.shards.dataset_card import CARD
from odvae.shards.unfinished import describe_unfinished
from odvae.storage.paths import is_remote
from odvae.weights.pretrained import root_of

# Hidden files, such as locks, and what a stopped command has left.
_NEVER = [".*", "*/.*", "*.partial"]


@dataclass(frozen=True)
class Publication:
    """What of a folder is published, as patterns of its files ("*" is any text, with "/" too), and its card."""

    kind: str
    repo_type: str
    files: list[str]
    without: list[str]
    card: Callable[[Path, str], str]
    """The text of README.md, of the folder and the name on the hub."""


def publish(folder: Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload a pipeline, a VAE, shards of videos or latents as the repository `repo` (OWNER/NAME). Returns its URL.

    A card is written for what has none, but for a pipeline, whose export writes it. The repository is made, `private`
    or not, if it is not there; files that it has already are not uploaded again. Raises InputError for other folders,
    incomplete ones, and where the hub refuses or cannot be reached, with what to do.
    """
    found = publication_of(folder)
    card = found.card(folder, repo)
    hub = api or HfApi()
    try:
        url = hub.create_repo(repo, repo_type=found.repo_type, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo,
            repo_type=found.repo_type,
            folder_path=folder,
            allow_patterns=found.files,
            ignore_patterns=[*_NEVER, CARD, *found.without],
            commit_message=f"Upload {found.kind}",
        )
        hub.upload_file(
            path_or_fileobj=card.encode(),
            path_in_repo=CARD,
            repo_id=repo,
            repo_type=found.repo_type,
            commit_message="Upload the card",
        )
    except LocalTokenNotFoundError:
        raise InputError("the hub needs a token: run `hf auth login`, or set HF_TOKEN") from None
    except HFValidationError as error:
        raise InputError(f"{repo!r} cannot be a repository's name: {error}") from None
    except HfHubHTTPError as error:
        raise InputError(
            f"the hub does not take {repo}: {root_of(error)}. Is the owner right, and the token (`hf auth login`, or "
            "HF_TOKEN) allowed to write?"
        ) from None
    except Exception as error:  # of the library that huggingface_hub sends with: requests, or httpx since 1.0
        raise InputError(f"the hub cannot be reached ({root_of(error)}); run the same command again") from None
    return str(url)


def publication_of(folder: Path) -> Publication:
    """What is published of this folder. Raises InputError for one that is nothing of the kind, or is incomplete."""
    if is_remote(folder):
        raise InputError(f"{folder} is a URL: copy the folder to this machine first")
    if (folder / "model_index.json").is_file():
        return Publication("the pipeline", "model", ["*"], [], _renamed_card)
    if (folder / MANIFEST).is_file():
        for problem in resized_files(folder, load_manifest(folder)):
            raise InputError(f"{problem}: the latents are not complete")
        names = ["*.tar", "index*", MANIFEST, "experiment.yaml", "*.safetensors", "text*"]
        return Publication("latents", "dataset", names, ["shards/*", "text/shards/*", "parts/*"], _latents_card)
    if (folder / "config.json").is_file():
        _check_is_vae(folder)
        weights = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        return Publication("the VAE", "model", weights, ["*/*"], vae_card)
    if any(folder.glob("*.tar")):
        if unfinished := describe_unfinished(folder):
            raise InputError(unfinished)
        return Publication("shards", "dataset", ["*.tar", "index*", REPORT], [], _shards_card)
    if not folder.is_dir():
        raise InputError(f"{folder} {'is a file, not a folder' if folder.exists() else 'does not exist'}")
    parts = [name for name in ("pipeline", "vae", "latents", "shards") if (folder / name).is_dir()]
    hint = f"; publish one of its folders: {', '.join(parts)}" if parts else ""
    raise InputError(f"{folder} is no folder of a pipeline, a VAE, latents or shards{hint}")


def _check_is_vae(folder: Path) -> None:
    """Raise InputError for the folder of a network, which is published as part of a pipeline."""
    if (folder / PROVENANCE).is_file():
        raise InputError(
            f"{folder} is a network, which needs its VAE: export the run (odvae-export) and publish the pipeline"
        )


def _renamed_card(folder: Path, repo: str) -> str:
    """The card of an exported pipeline, with its name on the hub as title and in its examples, where its folder was."""
    card = _own_card(folder)
    if not card:
        raise InputError(
            f"{folder} has no {CARD}: export the run with odvae-export, which writes it, or write one that says what "
            "the model is and was trained on"
        )
    title = next((line.removeprefix("# ").strip() for line in card.splitlines() if line.startswith("# ")), "")
    example = f'from_pretrained("{title}"'
    if example not in card:  # a card of one's own
        return card
    return card.replace(f"# {title}\n", f"# {repo}\n", 1).replace(example, f'from_pretrained("{repo}"')


def _latents_card(folder: Path, repo: str) -> str:
    return _for_hub(_own_card(folder) or latents_card(load_manifest(folder)), repo)


def _shards_card(folder: Path, repo: str) -> str:
    if own := _own_card(folder):
        return _for_hub(own, repo)
    if not (folder / REPORT).is_file():
        raise InputError(
            f"{folder} has neither a {CARD} nor a {REPORT}: write a {CARD} that says what is in the shards, with "
            '`configs: [{config_name: default, data_files: "*.tar"}]` between two lines of --- at its top'
        )
    return _for_hub(card_of(read_report(folder / REPORT), ""), repo)


def _own_card(folder: Path) -> str:
    return read_text_file(folder / CARD) if (folder / CARD).is_file() else ""


def _for_hub(card: str, repo: str) -> str:
    """The card of a data set, with its name on the hub in its example."""
    return card.replace('load_dataset("FOLDER"', f'load_dataset("{repo}"')
