"""WebDataset tar shards: written whole, read by an index of offsets.

A shard is a plain tar; the members of one sample follow each other and share a key: `KEY.mp4 KEY.txt KEY.json`.
The index lists where each member's bytes lie, so that sample i is one read away, whatever shard it is in. Nothing is
ever extracted or unpickled: names that reach outside a folder and pickled members are refused.
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

from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.shards.samples import Sample

# What webdataset's default decoder would unpickle.
PICKLED = (".pkl", ".pickle", ".pyd", ".pth", ".pt")

# A member's key and extension, as webdataset has it: the key ends at the first dot of the file's name. What has no
# key (.DS_Store, the ._a.mp4 that a Mac writes beside a.mp4) or no extension (README) is no member of any sample.
_MEMBER = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]+)$", re.DOTALL)

# How compressed files begin, and what unpacks them in place.
COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip", (".tar.gz", ".tgz")),
    b"BZh": ("bzip2", "bunzip2", (".tar.bz2", ".tbz2", ".tbz")),
    b"\xfd7zXZ": ("xz", "unxz", (".tar.xz", ".txz")),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d --rm", (".tar.zst", ".tzst")),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d -m --rm", (".tar.lz4",)),
}


def split_member_name(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case) of a member of a sample; None for what belongs to none."""
    found = _MEMBER.match(name)
    return (found[1], found[2].lower()) if found else None


def list_shards(folder: str | Path, command: str) -> list[Path]:
    """The .tar files of a folder, sorted. `command` is what makes them, for the error when there are none.

    Raises InputError also for compressed ones, with the command that unpacks them: clips are read from their middle.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; make it with: {command}")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    for kind, unpack, endings in COMPRESSIONS.values():
        for ending in endings:
            packed = [path for path in files if path.name.lower().endswith(ending)]
            packed = [path for path in packed if path.with_name(f"{path.name[: -len(ending)]}.tar") not in shards]
            if packed:
                every = f"{shlex.quote(str(folder))}/*{packed[0].name[-len(ending) :]}"
                raise InputError(
                    f"{folder} holds {len(packed)} shards compressed by {kind} ({packed[0].name}, ...), and clips are "
                    f"read from the middle of a tar; unpack them with: {unpack} {every}"
                )
    if not shards:
        below = sorted(path for path in folder.glob("*/*.tar") if not path.name.startswith("."))
        hint = f" (but {len(below)} in its sub-folders: name one of them, like {below[0].parent})" if below else ""
        raise InputError(f"folder {folder} holds no .tar shard{hint}; make them with: {command}")
    return shards


def index_shard(shard: Path) -> list[Sample]:
    """The samples of one shard in file order, from its tar headers. Raises InputError for a cut or foreign file."""
    try:
        samples = _index(shard)
    except InputError:
        raise
    except Exception as error:  # tarfile has no one type for a broken header
        raise InputError(f"{shard} is not a whole tar file{_compressed_as(shard)}: {error}") from None
    end = max((offset + size for members in samples.values() for offset, size in members.values()), default=0)
    if end > shard.stat().st_size:
        raise InputError(f"{shard} is cut: {shard.stat().st_size} bytes, but its last member ends at {end}")
    return [Sample(key, shard, members) for key, members in samples.items() if members]


def _index(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> extension -> (offset, size)."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    files: dict[str, tuple[int, int]] = {}
    links: list[tuple[str, str, str]] = []  # key, extension, name of what is linked to
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            place = split_member_name(member.name)
            if place is None or not (member.isfile() or member.islnk() or member.issym()):
                continue
            check_member_name(member.name, shard)
            if member.issparse() or member.size < 0:
                raise InputError(
                    f"{shard}: member {member.name!r} is stored with holes, which cannot be read in place; pack the "
                    "files again without tar's --sparse"
                )
            key, extension = place
            members = samples.setdefault(key, {})
            if extension in members:
                raise InputError(f"{shard}: {member.name} is there twice")
            members[extension] = files[member.name] = (member.offset_data, member.size)
            if not member.isfile():
                del members[extension], files[member.name]
                folder = posixpath.dirname(member.name) if member.issym() else ""
                links.append((key, extension, posixpath.normpath(posixpath.join(folder, member.linkname))))
        if not saw_end_mark(tar):
            raise tarfile.ReadError("it ends without an end mark: it was cut, or its writer was stopped")
        _refuse_what_follows_the_end(shard, tar.offset)
    normal = {posixpath.normpath(name): place for name, place in files.items()}
    targets = {f"{key}.{extension}": target for key, extension, target in links}
    for key, extension, target in links:
        for _ in links:  # a link to a link
            target = targets.get(target, target)
        if target not in normal:
            raise InputError(
                f"{shard}: member {key}.{extension} is a link to {target!r}, which is not in the shard; pack the files "
                "themselves (tar --dereference)"
            )
        samples[key][extension] = normal[target]
    return samples


def saw_end_mark(tar: tarfile.TarFile) -> bool:
    """Whether a tar that was read to its end has the mark there; tarfile itself takes a cut one for a shorter one."""
    assert tar.fileobj is not None
    return tar.fileobj.tell() >= tar.offset + tarfile.BLOCKSIZE


def _refuse_what_follows_the_end(shard: Path, end: int) -> None:
    """Tars that were joined by `cat` have an end mark in their middle, where every reader stops."""
    with open(shard, "rb") as file:
        file.seek(end)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise InputError(
                    f"{shard} goes on after its end mark at byte {end}, as tars do that were joined by cat: no reader "
                    "sees the rest. Keep them apart, or join them with tar --concatenate"
                )


def _compressed_as(shard: Path) -> str:
    """For an error: by what a file is compressed that is named .tar, and how to unpack it."""
    with open(shard, "rb") as file:
        beginning = file.read(8)
    for mark, (kind, unpack, endings) in COMPRESSIONS.items():
        if beginning.startswith(mark):
            quoted, renamed = shlex.quote(str(shard)), shlex.quote(str(shard.with_suffix(endings[0])))
            return f", it is compressed by {kind}; unpack it with: mv {quoted} {renamed} && {unpack} {renamed}"
    return ""


def check_member_name(name: str, shard: Path | str) -> None:
    """Refuse what no honest shard holds."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts:
        raise InputError(f"{shard}: member {name!r} reaches outside the shard; such shards are refused")
    if parts[-1].lower().endswith(PICKLED):
        raise InputError(f"{shard}: member {name!r} is pickled, which may hold any code; such shards are refused")


def index_shards(shards: list[Path]) -> list[Sample]:
    """The samples of all shards, in order. Raises InputError where two samples share a key."""
    samples = [sample for shard in shards for sample in index_shard(shard)]
    seen: dict[str, Sample] = {}
    for sample in samples:
        if sample.key in seen:
            raise InputError(f"key {sample.key} is in {seen[sample.key].shard} and in {sample.shard}")
        seen[sample.key] = sample
    return samples


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[wds.TarWriter]:
    """A WebDataset tar writer whose file appears at `path` only when whole; same samples, same bytes.

    Values are bytes (`{"__key__": key, "mp4": ..., "json": ...}`): nothing is encoded behind the caller's back.
    """
    with atomic_file(path) as file:
        writer = wds.TarWriter(file, encoder=False, mtime=0, user="odvae", group="odvae")
        try:
            yield writer
        finally:
            writer.close()
