"""Mutations that keep a container's checksums and lengths right, so that what is changed is looked at."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from random import Random

from ldm.fuzzing.mutations import BYTES, JSON, TEXT, Mutation, mutate

_TAR_FIELDS = {
    "name": (0, 100), "mode": (100, 108), "uid": (108, 116), "size": (124, 136), "mtime": (136, 148),
    "type": (156, 157), "link": (157, 257), "magic": (257, 265), "prefix": (345, 500), "rest": (386, 512),
}  # fmt: skip
_TAR_TYPES = b"01234567SgxXLKDMNV\0 "
_TAR_NUMBERS = (
    *(b"0", b"1", b"00000000017", b"77777777777", b"-1", b"9", b"", b" ", b"\x80" + 10 * b"\0" + b"\x01"),
    *(12 * b"\xff", b"\x80" + 11 * b"\xff", b"\x80\0\0\0\x7f" + 7 * b"\xff", b"1e9", b"00000001000\0"),
)
_TAR_NAMES = (
    *(b"../../x.mp4", b"/etc/passwd.txt", b"a.pkl", b"a", b".mp4", b"a..mp4", b"a.b.c.mp4", b"\xff\xfe.mp4", b"a/"),
    *(100 * b"n", b"a\n.mp4", b"a.MP4", b"a.txt", b"a.json", b"\\a.mp4", b"", b"a\0b.mp4", b"._a.mp4"),
)


def change_tar_header(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Change a field of a tar's header and make its checksum right again."""
    headers = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
    if not headers:
        return data
    place = rng.choice(headers)
    block = bytearray(data[place : place + 512])
    name = rng.choice(list(_TAR_FIELDS))
    begin, end = _TAR_FIELDS[name]
    if name == "type":
        new = bytes([rng.choice(_TAR_TYPES)])
    elif name in ("name", "link", "prefix"):
        new = rng.choice((*_TAR_NAMES, data[rng.choice(headers) :][:100]))
    else:
        new = rng.choice((*_TAR_NUMBERS, rng.randbytes(end - begin)))
    block[begin:end] = new[: end - begin].ljust(end - begin, b"\0")
    return data[:place] + _with_checksum(block) + data[place + 512 :]


def _with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def change_pax_records(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Put a pax header before the first member: another size, path or map of holes, some of them nonsense."""
    keys = ("size", "path", "linkpath", "mtime", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "hdrcharset")
    values = ("0", "-1", "9" * 30, "1.5", "nan", "a.mp4", "../x", "0,1,2", "é", "", "BINARY", "1", "\n")
    records = b""
    for _count in range(rng.choice((1, 2, 3))):
        record = f" {rng.choice(keys)}={rng.choice(values)}\n".encode()
        length = len(record) + len(str(len(record) + 2))
        records += str(rng.choice((length, length, length, 0, 10**9, length + 1))).encode() + record
    header = tarfile.TarInfo("pax")
    header.type, header.size = rng.choice((b"x", b"x", b"g")), len(records)
    return header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(-len(records) // 512 * -512, b"\0") + data


TAR: tuple[Mutation, ...] = (*(change_tar_header,) * 8, *(change_pax_records,) * 2, *BYTES)


def change_safetensors_header(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Change the JSON header of a safetensors file; its length stays right, mostly."""
    if len(data) < 8:
        return data
    length = int.from_bytes(data[:8], "little")
    header = mutate(data[8 : 8 + length], rng, JSON, [data[8 : 8 + length]])
    stated = rng.choice((len(header),) * 9 + (rng.randrange(2**64),))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def make_numbers_extreme(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Write NaN, infinities and the like over the tensors of a safetensors file."""
    if len(data) < 8:
        return data
    begin = 8 + int.from_bytes(data[:8], "little")
    pattern = rng.choice((b"\xff\xff", b"\x80\x7f", b"\x7f\x7f", b"\0\0", b"\0\0\xc0\x7f"))
    first = rng.randrange(begin, len(data)) if begin < len(data) else len(data)
    last = rng.randrange(first, len(data) + 1)
    return data[:first] + (pattern * ((last - first) // len(pattern) + 1))[: last - first] + data[last:]


SAFETENSORS: tuple[Mutation, ...] = (*(change_safetensors_header,) * 6, *(make_numbers_extreme,) * 2, *BYTES)


def change_zip_member(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Change a member of a zip file, as torch.save writes them, or leave one out."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            members = [(name, opened.read(name)) for name in opened.namelist()]
    except Exception:  # it was changed before: whatever zipfile says of that is no matter here
        return data
    if not members:
        return data
    place = rng.randrange(len(members))
    name, content = members[place]
    if rng.random() < 0.1:
        del members[place]
    else:
        members[place] = name, mutate(content, rng, BYTES, [one for _, one in members])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as target:
        for name, content in members:
            target.writestr(zipfile.ZipInfo(name), content)
    return written.getvalue()


ZIP: tuple[Mutation, ...] = (*(change_zip_member,) * 6, *BYTES)


def change_png_chunk(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Change a chunk of a PNG and make its checksum right again."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return data
    changed = rng.randrange(len(chunks))
    kind, content = chunks[changed]
    chunks[changed] = kind, mutate(content, rng, BYTES, [one for _, one in chunks])
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


PNG: tuple[Mutation, ...] = (*(change_png_chunk,) * 6, *BYTES)


def change_packed_text(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Change the text that a gzip file holds."""
    try:
        text = gzip.decompress(data)
    except (OSError, EOFError, zlib.error, struct.error):
        return data
    return gzip.compress(mutate(text, rng, TEXT, [text]), 1)


GZIP: tuple[Mutation, ...] = (*(change_packed_text,) * 4, *BYTES)
