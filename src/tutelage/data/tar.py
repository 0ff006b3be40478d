"""The headers of a tar archive, read once from front to back; nothing is extracted, no member's content is read.

Read are ustar, GNU (long names) and PAX headers, as POSIX.1-2024 (pax, "ustar Interchange Format") and the manual of
GNU tar ("Basic Tar Format") state them. Python's own `tarfile` is not used because it keeps an object a member, and
takes extended headers of any size into memory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_BLOCK = 512
_EXTENDED_BYTES = 2**20  # a long name or a PAX header; real ones have some hundred
_TAIL_BYTES = 2**20  # looked at behind the end mark
_ZERO = bytes(_BLOCK)
_ABOUT_NEXT = b"LKxXg"  # kinds of headers: long name, long link name, PAX (POSIX's, Sun's), PAX for all that follow
_WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes; their size means nothing
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=\n]{1,200})=")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


class NotTar(ValueError):
    """The file is no plain tar archive; the message says what it is."""


class Member(NamedTuple):
    """A regular file in an archive.

    Attributes:
        name: without a leading "./"; bytes that are no UTF-8 stand as \\xNN.
        offset, size: bytes: where its content begins, and how much it is.
    """

    name: str
    offset: int
    size: int


class Note(NamedTuple):
    """Something wrong or left out: what, the first example, how often."""

    problem: str
    example: str
    times: int


@dataclass
class Notes:
    """What a pass over an archive met, counted by problem, so that a million bad members take no memory."""

    _found: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, problem: str, example: str) -> None:
        first, count = self._found.get(problem, (example, 0))
        self._found[problem] = (first, count + 1)

    def all(self) -> list[Note]:
        return [Note(problem, example, count) for problem, (example, count) in self._found.items()]


@dataclass
class _Extended:
    """What headers in front of a member say about it."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    broken: bool = False


class _Damage(ValueError):
    """A header that cannot be made sense of; what follows it cannot be found."""


def read_members(descriptor: int, notes: Notes) -> Iterator[Member]:
    """The regular files of an archive, in its order; a name may come again.

    Left out and noted are links, devices, sparse files, names that lead outside, and what stands behind damage. A last
    member that is cut is left out and noted as well; those before it are whole.

    Args:
        descriptor: the file, open for reading.
        notes: takes in what is left out.

    Raises:
        NotTar: the first block is no header.
    """
    end = os.fstat(descriptor).st_size
    if sys.platform == "linux":  # else the kernel reads ahead, and with it most of the contents
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    at, extended = 0, _Extended()
    while True:
        block = os.pread(descriptor, _BLOCK, at)
        if len(block) < _BLOCK or block == _ZERO:
            _check_first(at, block)
            _note_end(descriptor, at, end, block, notes)
            return
        try:
            header = _header(block)
        except _Damage as damage:
            _check_first(at, block)
            notes.add(f"{damage}; what follows is not read", f"byte {at}")
            return
        try:
            content = _content(descriptor, at, block, header)
            if header.kind in _ABOUT_NEXT:
                _extend(extended, _read_extension(descriptor, content, header, end), header.kind)
        except _Damage as damage:
            notes.add(f"{damage}; what follows is not read", f"byte {at}")
            return
        if header.kind in _ABOUT_NEXT:
            at = _next(content, header.size)
            continue
        size = header.size if extended.size is None else extended.size
        name = _text(header.name if extended.name is None else extended.name)
        if header.kind in _WITHOUT_CONTENT:
            size = 0
        if content + size > end:
            notes.add("the archive is cut, its last member is not whole", name)
            return
        if _usable(name, header, extended, notes):
            yield Member(name, content, size)
        at, extended = _next(content, size), _Extended()


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes  # one byte: the type flag


def _header(block: bytes) -> _Header:
    total = sum(block) - sum(block[148:156]) + 8 * 32
    stated = _number(block[148:156])
    if stated != total and stated != total - 256 * sum(b > 127 for b in block[:148] + block[156:]):  # old: signed bytes
        raise _Damage("a header's checksum is wrong")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[257:263] == b"ustar\0":  # GNU keeps other things there
        name = prefix + b"/" + name
    kind = block[156:157]
    if kind == b"\0":
        kind = b"5" if name.endswith(b"/") else b"0"  # the oldest archives know no kinds
    return _Header(name, _number(block[124:136]), kind)


def _number(digits: bytes) -> int:
    """A header's number: octal text, or GNU's form for large ones."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    text = digits.split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", text):
        raise _Damage("a header's number cannot be read")
    return int(text or b"0", 8)


def _next(content: int, size: int) -> int:
    return content + -(-size // _BLOCK) * _BLOCK


def _content(descriptor: int, at: int, block: bytes, header: _Header) -> int:
    """Where a member's content begins: the map of an old GNU sparse file may need blocks behind the header."""
    more = header.kind == b"S" and block[482] != 0
    while more:
        at += _BLOCK
        block = os.pread(descriptor, _BLOCK, at)
        if len(block) < _BLOCK:
            raise _Damage("the map of a sparse file is cut")
        more = block[504] != 0
    return at + _BLOCK


def _read_extension(descriptor: int, content: int, header: _Header, end: int) -> bytes:
    if header.size > _EXTENDED_BYTES:
        raise _Damage(f"a long name or PAX header of {header.size:,} bytes")
    if content + header.size > end:
        raise _Damage("a long name or PAX header is cut")
    return os.pread(descriptor, header.size, content)


def _extend(extended: _Extended, content: bytes, kind: bytes) -> None:
    """Take in what a header says about the member that follows."""
    if kind == b"L":
        extended.name = content.split(b"\0", 1)[0]
    if kind not in b"xX":
        return
    content = content.rstrip(b"\0")
    at = 0
    while at < len(content):  # records "length key=value\n", the length being that of the whole record
        start = _RECORD.match(content, at)
        if start is None:
            extended.broken = True
            return
        end = at + int(start[1])
        if not start.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            extended.broken = True
            return
        _take_record(start[2], content[start.end() : end - 1], extended)
        at = end


def _take_record(key: bytes, value: bytes, extended: _Extended) -> None:
    if key == b"path":
        extended.name = value
    elif key == b"size":
        extended.broken |= not re.fullmatch(rb"[0-9]{1,20}", value)
        extended.size = None if extended.broken else int(value)
    elif key.startswith(b"GNU.sparse."):
        extended.sparse = True


def _text(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return text


def _usable(name: str, header: _Header, extended: _Extended, notes: Notes) -> bool:
    if header.kind == b"5":  # a folder
        return False
    if header.kind in b"12":
        problem = "links are not followed"
    elif header.kind in b"346":
        problem = "devices and pipes are left out"
    elif header.kind == b"S" or extended.sparse:
        problem = "sparse files are left out"
    elif header.kind not in b"07":
        problem = "members of an unknown kind are left out"
    elif extended.broken:
        problem = "a member's PAX header cannot be read"
    elif not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        problem = "a member's name leads outside of the archive"
    else:
        return True
    notes.add(problem, name)
    return False


def _check_first(at: int, block: bytes) -> None:
    """Raise NotTar at the head of the file, where damage means that this never was an archive."""
    if at > 0 or block == _ZERO:
        return
    for magic, compression in _COMPRESSED.items():
        if block.startswith(magic):
            raise NotTar(f"it is compressed with {compression}: single images could not be read from it")
    raise NotTar(f"it begins with {block[:8]!r}" if block else "it is empty (0 bytes)")


def _note_end(descriptor: int, at: int, end: int, block: bytes, notes: Notes) -> None:
    if block == _ZERO:
        if os.pread(descriptor, _TAIL_BYTES, at).strip(b"\0"):
            notes.add("what stands behind the archive's end mark is not read (archives joined into one?)", f"byte {at}")
    elif block:
        notes.add("the archive is cut inside a header", f"byte {at}")
    else:
        notes.add("the archive has no end mark: it may be cut", f"byte {end}")
