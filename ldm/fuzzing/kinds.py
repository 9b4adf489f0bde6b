"""All kinds of input that are fuzzed."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.fuzzing.captions import CAPTION, TABLE
from ldm.fuzzing.folders import FOLDER, RECORD
from ldm.fuzzing.kind import Kind
from ldm.fuzzing.latents import ENTRY, MANIFESTS
from ldm.fuzzing.media import IMAGE, VIDEO
from ldm.fuzzing.models import CHECKPOINT, NETWORK, PUBLISHED, TEXT_ENCODER, VAE
from ldm.fuzzing.shards import MEMBER, SHARD
from ldm.fuzzing.texts import CONFIG, PROMPTS
from odvae.running.errors import InputError

KINDS = (
    *(VIDEO, IMAGE, TABLE, CAPTION, CONFIG, PROMPTS, SHARD, MEMBER, ENTRY, MANIFESTS),
    *(VAE, NETWORK, TEXT_ENCODER, PUBLISHED, CHECKPOINT, FOLDER, RECORD),
)


def choose_kinds(names: Sequence[str]) -> list[Kind]:
    """The kinds of these names; all, where there are none. Raises InputError for an unknown name."""
    there = {kind.name: kind for kind in KINDS}
    for name in names:
        if name not in there:
            raise InputError(f"kinds: {name!r} is unknown; allowed are {', '.join(there)}")
    return [there[name] for name in names] or list(KINDS)
