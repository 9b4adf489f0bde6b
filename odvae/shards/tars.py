"""WebDataset tar shards: atomic writing, and an index of member offsets for random access.

A shard is a plain tar; the members of one sample follow each other and share a key: `KEY.mp4 KEY.txt KEY.json`.
The index has the offset of each member, so that any sample can be read directly. Nothing is ever extracted or
unpickled: member names that point outside of a folder, and pickled members, are refused.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

import webdataset as wds

from odvae.running.commands import command_line
from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.shards.samples import Member, Sample
from odvae.shards.tar_headers import read_ordinary_tar
from odvae.storage.files import read_range
from odvae.storage.listing import list_files
from odvae.storage.open_file import open_file
from odvae.storage.paths import is_remote, open_path
from odvae.storage.states import file_state
from odvae.video.extensions import VIDEO_EXTENSIONS

# Extensions that webdataset's default decoder would unpickle.
PICKLED = (".pkl", ".pickle", ".pyd", ".pth", ".pt")

# A member's key and extension, as in webdataset: the key ends at the first dot of the file's name. Files without a key
# (.DS_Store, macOS's ._a.mp4) or without an extension (README) do not belong to any sample.
_MEMBER = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]+)$", re.DOTALL)

# Extensions of nearly all members: in lower case, with no dot, not pickled.
_PLAIN = frozenset(("mp4", "txt", "json", "safetensors"))

# First bytes of compressed files -> (format, command that decompresses in place, file extensions).
COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip", (".tar.gz", ".tgz")),
    b"BZh": ("bzip2", "bunzip2", (".tar.bz2", ".tbz2", ".tbz")),
    b"\xfd7zXZ": ("xz", "unxz", (".tar.xz", ".txz")),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d --rm", (".tar.zst", ".tzst")),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d -m --rm", (".tar.lz4",)),
}


def split_member_name(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case) of a member of a sample; None for a file that does not belong to any sample."""
    found = _MEMBER.match(name)
    return (found[1], found[2].lower()) if found else None


def list_shards(folder: str | Path, command: str) -> list[Path]:
    """The .tar files of a folder, a path or a URL, sorted.

    Raises InputError if there are none, with the `command` that makes them, or the one that packs a folder of videos;
    and if there are compressed ones, with the command that decompresses them, since random access needs plain tars.
    """
    folder = open_path(folder)
    if not is_remote(folder) and not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; make it with: {command}")
    files = [path for path in list_files(folder) if not path.name.startswith(".")]
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    for kind, unpack, endings in COMPRESSIONS.values():
        for ending in endings:
            packed = [path for path in files if path.name.lower().endswith(ending)]
            packed = [path for path in packed if path.with_name(f"{path.name[: -len(ending)]}.tar") not in shards]
            if packed:
                every = f"{shlex.quote(str(folder))}/*{packed[0].name[-len(ending) :]}"
                raise InputError(
                    f"{folder} holds {len(packed)} shards compressed with {kind} ({packed[0].name}, ...), but random "
                    f"access needs plain tars; decompress them with: {unpack} {every}"
                )
    if not shards:
        found = [] if is_remote(folder) else folder.glob("*/*.tar")
        below = sorted(path for path in found if not path.name.startswith("."))
        videos = [path for path in files if path.suffix.lower().lstrip(".") in VIDEO_EXTENSIONS]
        if videos:
            raise InputError(
                f"folder {folder} holds videos ({videos[0].name}, ...), but no .tar shard: pack them first into "
                f"another folder ({command_line('make_shards')} {shlex.quote(str(folder))} SHARDS), and give that one "
                "(data.shards=SHARDS)"
            )
        hint = f" (but {len(below)} in its sub-folders: name one of them, like {below[0].parent})" if below else ""
        raise InputError(f"folder {folder} holds no .tar shard{hint}; make them with: {command}")
    return shards


def index_shard(shard: Path) -> list[Sample]:
    """The samples of a shard in file order, from its tar headers. Raises InputError for a truncated or invalid tar."""
    try:
        samples = _index(shard)
    except InputError:
        raise
    except Exception as error:  # tarfile raises various types for a broken header
        raise InputError(f"{shard} is not a complete tar file{_compressed_as(shard)}: {error}") from None
    end = max((offset + size for members in samples.values() for offset, size, _ in members.values()), default=0)
    if end > (size := file_state(shard).size):
        raise InputError(f"{shard} is truncated: {size} bytes, but its last member ends at {end}")
    return [Sample(key, shard, members) for key, members in samples.items() if members]


def _index(shard: Path) -> dict[str, dict[str, Member]]:
    """Key -> extension -> member."""
    found = _Members(shard)
    ordinary = read_ordinary_tar(shard)
    if ordinary is not None:
        files, end = ordinary
        for name, offset, size in files:
            key, _, extension = name.partition(".")
            members = found.samples.get(key)
            if members is None or extension in members or extension not in _PLAIN:
                found.add(name, offset, size)
            else:  # another member of a sample, whose key was checked: nearly all
                members[extension] = Member(offset, size)
        _refuse_what_follows_the_end(shard, end)
        return found.samples
    with open_file(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not (member.isfile() or member.islnk() or member.issym()):
                continue
            if member.issparse() or member.size < 0:
                found.refuse_sparse(member.name)
            elif member.isfile():
                found.add(member.name, member.offset_data, member.size)
            else:
                folder = posixpath.dirname(member.name) if member.issym() else ""
                found.add_link(member.name, posixpath.normpath(posixpath.join(folder, member.linkname)))
        if not saw_end_mark(tar):
            raise tarfile.ReadError("it has no end mark: it was truncated, or its writer was stopped")
        _refuse_what_follows_the_end(shard, tar.offset)
    found.follow_links()
    return found.samples


class _Members:
    """The members of a shard by sample, as they are found in its headers. Its methods raise InputError."""

    def __init__(self, shard: Path) -> None:
        self.shard = shard
        self.samples: dict[str, dict[str, Member]] = {}
        self.files: dict[str, Member] = {}
        self.links: list[tuple[str, str, str]] = []  # key, extension, name of the link's target

    def add(self, name: str, offset: int, size: int) -> None:
        """Add a file, unless it belongs to no sample."""
        split = _checked_split(name, self.shard)
        if split is None:
            return
        key, extension = split
        members = self.samples.setdefault(key, {})
        if extension in members:
            raise InputError(f"{self.shard}: duplicate member {name}")
        members[extension] = self.files[name] = Member(offset, size)

    def add_link(self, name: str, target: str) -> None:
        split = _checked_split(name, self.shard)
        if split is None:
            return
        key, extension = split
        if extension in self.samples.setdefault(key, {}):
            raise InputError(f"{self.shard}: duplicate member {name}")
        self.links.append((key, extension, target))

    def refuse_sparse(self, name: str) -> None:
        if _checked_split(name, self.shard) is not None:
            raise InputError(
                f"{self.shard}: member {name!r} is stored as a sparse file, which is not supported; pack the "
                "files again without tar's --sparse"
            )

    def follow_links(self) -> None:
        """Give each link the extent of the file at which it points."""
        normal = {posixpath.normpath(name): extent for name, extent in self.files.items()}
        targets = {f"{key}.{extension}": target for key, extension, target in self.links}
        for key, extension, target in self.links:
            for _ in self.links:  # a link to a link
                target = targets.get(target, target)
            if target not in normal:
                raise InputError(
                    f"{self.shard}: member {key}.{extension} is a link to {target!r}, which is not in the shard; pack "
                    "the files themselves (tar --dereference)"
                )
            self.samples[key][extension] = normal[target]


def _checked_split(name: str, shard: Path) -> tuple[str, str] | None:
    """The key and extension of a member; None if it belongs to no sample. Raises InputError for an unsafe name."""
    split = split_member_name(name)
    if split is not None:
        check_member_name(name, shard)
    return split


def saw_end_mark(tar: tarfile.TarFile) -> bool:
    """Whether a tar that was read to its end has an end mark, which tarfile itself does not check."""
    assert tar.fileobj is not None
    return tar.fileobj.tell() >= tar.offset + tarfile.BLOCKSIZE


def _refuse_what_follows_the_end(shard: Path, end: int) -> None:
    """Raise InputError for tars joined with `cat`: they have an end mark in the middle, at which every reader stops."""
    with open_file(shard) as file:
        file.seek(end)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise InputError(
                    f"{shard} continues after its end mark at byte {end}, like tars joined with cat: readers ignore "
                    "the rest. Keep the tars separate, or join them with tar --concatenate"
                )


def _compressed_as(shard: Path) -> str:
    """How a file named .tar is compressed, and how to decompress it, for an error message; empty if it is not."""
    beginning = read_range(shard, 0, 8)
    for mark, (kind, unpack, endings) in COMPRESSIONS.items():
        if beginning.startswith(mark):
            quoted, renamed = shlex.quote(str(shard)), shlex.quote(str(shard.with_suffix(endings[0])))
            return f", it is compressed with {kind}; decompress it with: mv {quoted} {renamed} && {unpack} {renamed}"
    return ""


def check_member_name(name: str, shard: Path | str) -> None:
    """Raise InputError for an unsafe member name."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts:
        raise InputError(f"{shard}: member {name!r} has a path outside of the shard; such shards are refused")
    if parts[-1].lower().endswith(PICKLED):
        raise InputError(f"{shard}: member {name!r} is pickled and could run code; such shards are refused")


def index_shards(shards: list[Path]) -> list[Sample]:
    """The samples of all shards, in order. Raises InputError if two samples have the same key."""
    samples = [sample for shard in shards for sample in index_shard(shard)]
    seen: dict[str, Sample] = {}
    for sample in samples:
        if sample.key in seen:
            raise InputError(f"key {sample.key} is in {seen[sample.key].shard} and in {sample.shard}")
        seen[sample.key] = sample
    return samples


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[wds.TarWriter]:
    """A WebDataset tar writer that writes `path` atomically; the same samples give the same bytes.

    Values must be bytes (`{"__key__": key, "mp4": ..., "json": ...}`); there is no automatic encoding.
    """
    with atomic_file(path) as file:
        writer = wds.TarWriter(file, encoder=False, mtime=0, user="odvae", group="odvae")
        try:
            yield writer
        finally:
            writer.close()
