"""Motion files out of a folder, one file, or a `.tar(.xz|.gz|.bz2)` / `.zip` archive, in one order everywhere.

An archive is treated as hostile: a name that leads out of the target folder, a link, a device, an encrypted or sparse member
is refused, and what it unpacks to is bounded in count and bytes. Nothing but motion files is written to disk.
"""

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from vadis.errors import FileError

MOTION_SUFFIXES = (".bvh", ".amc", ".npz", ".npy", ".glb", ".json")
"""What is yielded. `.json` only when it is a DeepMimic clip; `.asf` skeletons and sidecars are unpacked beside, not yielded."""
_COMPANIONS = (".asf", ".json")  # needed to read an .amc, an .npy
_ARCHIVE = re.compile(r"\.(tar|tar\.(xz|gz|bz2)|tgz|txz|tbz2|zip)$", re.IGNORECASE)
_CHUNK = 1 << 20


def is_archive(path: str | Path) -> bool:
    """Whether the name is that of an archive this module opens."""
    return _ARCHIVE.search(Path(path).name) is not None


def iter_motion_files(
    source: str | Path,
    *,
    suffixes: Collection[str] = MOTION_SUFFIXES,
    max_bytes: int = 16 << 30,
    max_files: int = 1_000_000,
    follow_links: bool = False,
) -> Iterator[tuple[str, Path]]:
    """Yield `(name, path)` of every motion file in a folder, an archive, or of the single file `source`.

    `name` is relative to `source` with forward slashes, and the order is that of the sorted names. `path` can be handed to
    `vadis.load_motion`; one that comes out of an archive is temporary and gone after the iteration ends.

    Args:
        source: folder (searched to the bottom), archive, or motion file.
        suffixes: lower-case suffixes to yield.
        max_bytes: most bytes an archive may unpack to.
        max_files: most members an archive, or files a folder, may hold.
        follow_links: let links inside a folder lead out of it.

    Raises FileError for a missing or damaged source, an unsafe member, or a limit that is passed.
    """
    source = Path(source)
    wanted = frozenset(suffix.lower() for suffix in suffixes)
    if source.is_dir():
        yield from _from_folder(source, wanted, max_files, follow_links)
    elif not source.exists():
        raise FileError(f"no file or folder {source}: check the path.")
    elif is_archive(source):
        with tempfile.TemporaryDirectory(prefix="vadis-") as folder:
            root = Path(folder)
            names = _unpack(source, root, wanted | frozenset(_COMPANIONS), max_bytes, max_files)
            for name in sorted(names):
                if _is_motion(root / name, wanted):
                    yield name, root / name
    else:
        yield source.name, source


def _is_motion(path: Path, wanted: frozenset[str]) -> bool:
    suffix = path.suffix.lower()
    if suffix not in wanted or path.name.startswith("."):
        return False
    if suffix != ".json":
        return True
    with path.open("rb") as file:  # sidecars, manifests and settings are JSON as well
        return b'"Frames"' in file.read(4096)


def _from_folder(root: Path, wanted: frozenset[str], max_files: int, follow_links: bool) -> Iterator[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    seen = 0
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for file in files:
            seen += 1
            if seen > max_files:
                raise FileError(
                    f"{root} holds more than {max_files} files: pass a narrower folder or a larger max_files."
                )
            path = Path(folder, file)
            if path.suffix.lower() not in wanted:
                continue
            if path.is_symlink() and not follow_links and not path.resolve().is_relative_to(root.resolve()):
                raise FileError(f"{path} is a link that leads out of {root}: copy the file, or pass follow_links=True.")
            if path.is_file() and _is_motion(path, wanted):
                found.append((path.relative_to(root).as_posix(), path))
    yield from sorted(found)


def _safe_name(archive: Path, name: str) -> str:
    """The member's name with forward slashes; FileError when it could land outside the target folder."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or "\0" in plain or re.match(r"[A-Za-z]:", plain):
        raise FileError(f"{archive}: member {name!r} would be written outside the folder; refused. Repack the archive.")
    return "/".join(parts)


def _unpack(archive: Path, root: Path, wanted: frozenset[str], max_bytes: int, max_files: int) -> list[str]:
    """Write the wanted members of `archive` below `root`; their names."""
    opened = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
    names: set[str] = set()
    written = 0
    try:
        for count, (member, file) in enumerate(opened(archive, max_bytes)):
            if count >= max_files:
                raise FileError(f"{archive} holds more than {max_files} members: raise max_files if you trust it.")
            name = _safe_name(archive, member)
            base = name.rpartition("/")[2]
            if file is None or Path(base).suffix.lower() not in wanted or base.startswith("._") or "__MACOSX" in name:
                continue
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:  # a member that occurs twice: the later one wins, as in tar
                while chunk := file.read(_CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise FileError(
                            f"{archive} unpacks to more than {max_bytes} bytes: raise max_bytes if you trust it."
                        )
                    out.write(chunk)
            names.add(name)
    except FileError:
        raise
    except (
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        ValueError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        raise FileError(f"{archive} can't be unpacked ({error or type(error).__name__}): download it again.") from error
    except (lzma.LZMAError, zlib.error) as error:
        raise FileError(f"{archive} is damaged ({error}): download it again.") from error
    return list(names)


class _Bounded:
    """A decompressed stream that refuses to go past `limit` bytes, or to hand out a huge block at once.

    tarfile reads extended headers whole and skips members by decompressing them: both are where a small archive bites.
    """

    def __init__(self, archive: Path, stream: Any, limit: int) -> None:
        self.archive, self.stream, self.limit = archive, stream, limit

    def _check(self, position: int, block: int) -> None:
        if position > self.limit or block > 64 << 20:
            raise FileError(f"{self.archive} unpacks to more than {self.limit} bytes: raise max_bytes if you trust it.")

    def read(self, size: int) -> bytes:
        self._check(self.stream.tell() + size, size)
        return self.stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        if whence == 0:
            self._check(position, 0)
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _tar_members(archive: Path, limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    with archive.open("rb") as raw:
        head = raw.read(6)
        raw.seek(0)
        stream: Any = raw
        if head.startswith(b"\xfd7zXZ"):
            stream = lzma.LZMAFile(raw)  # noqa: SIM115 (closes with raw)
        elif head.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=raw)
        elif head.startswith(b"BZh"):
            stream = bz2.BZ2File(raw)
        bounded: Any = _Bounded(archive, stream, 2 * limit + (64 << 20))  # headers and other members count too
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    yield member.name, None
                elif not member.isreg() or member.issparse():
                    raise FileError(
                        f"{archive}: member {member.name!r} is a link, a device or a sparse file; refused. Repack the "
                        "archive with plain files only."
                    )
                else:
                    yield member.name, tar.extractfile(member)
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every header otherwise


def _zip_members(archive: Path, limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise FileError(
                    f"{archive}: member {member.filename!r} is a link or a device; refused. Repack the archive."
                )
            if member.flag_bits & 1:
                raise FileError(f"{archive}: member {member.filename!r} is encrypted: unpack the archive yourself.")
            if member.file_size > limit:
                raise FileError(f"{archive} unpacks to more than {limit} bytes: raise max_bytes if you trust it.")
            if member.is_dir():
                yield member.filename, None
            else:
                with zipped.open(member) as file:
                    yield member.filename, file
