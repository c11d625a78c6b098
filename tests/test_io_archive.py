"""Archives and folders: one order, nothing unsafe, nothing endless."""

import io
import tarfile
import zipfile

import pytest

from vadis.errors import FileError
from vadis.io.archive import is_archive, iter_motion_files

BVH = b"HIERARCHY\n"


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return path


MEMBERS = [
    ("set/b.bvh", BVH),
    ("set/a.BVH", BVH + b"a"),
    ("set/deep/c.json", b'{"Loop": "wrap", "Frames": []}'),
    ("set/manifest.json", b'{"clips": 3}'),
    ("set/02.asf", b":version"),
    ("set/02_01.amc", b":DEGREES"),
    ("set/._b.bvh", b"junk"),
    ("__MACOSX/set/b.bvh", b"junk"),
    ("set/readme.txt", b"text"),
]
EXPECTED = ["set/02_01.amc", "set/a.BVH", "set/b.bvh", "set/deep/c.json"]


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".tgz", ".zip"])
def test_archives_yield_sorted_motion_files_with_companions(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    mode = {".tar.xz": "w:xz", ".tar.bz2": "w:bz2", ".tar": "w"}.get(suffix, "w:gz")
    make_zip(path, MEMBERS) if suffix == ".zip" else make_tar(path, MEMBERS, mode)
    assert is_archive(path)
    seen = []
    for name, file in iter_motion_files(path):
        seen.append(name)
        assert file.read_bytes()
        if name.endswith(".amc"):
            assert file.with_name("02.asf").is_file()
    assert seen == EXPECTED
    assert not file.exists()  # temporary


def test_folder_gives_the_same_names_as_the_archive(tmp_path):
    for name, data in MEMBERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert [name for name, _ in iter_motion_files(tmp_path)] == EXPECTED
    assert [name for name, _ in iter_motion_files(tmp_path, suffixes=(".bvh",))] == ["set/a.BVH", "set/b.bvh"]
    assert list(iter_motion_files(tmp_path / "set/b.bvh")) == [("b.bvh", tmp_path / "set/b.bvh")]


@pytest.mark.parametrize("name", ["../evil.bvh", "/etc/evil.bvh", "a/../../evil.bvh", "C:\\evil.bvh", "..\\evil.bvh"])
@pytest.mark.parametrize("maker", [make_tar, make_zip])
def test_names_that_lead_out_are_refused(tmp_path, name, maker):
    path = maker(tmp_path / ("x.zip" if maker is make_zip else "x.tar.gz"), [(name, BVH)])
    with pytest.raises(FileError, match="outside the folder"):
        list(iter_motion_files(path))
    assert not (tmp_path.parent / "evil.bvh").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.bvh")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(FileError, match="link, a device"):
        list(iter_motion_files(tmp_path / "x.tar"))


def test_zip_link_and_encryption_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as zipped:
        info = zipfile.ZipInfo("a.bvh")
        info.external_attr = 0o120777 << 16
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(FileError, match="link or a device"):
        list(iter_motion_files(tmp_path / "link.zip"))
    data = bytearray(make_zip(tmp_path / "secret.zip", [("a.bvh", BVH)]).read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    (tmp_path / "secret.zip").write_bytes(data)
    with pytest.raises(FileError, match="encrypted"):
        list(iter_motion_files(tmp_path / "secret.zip"))


@pytest.mark.parametrize("maker", [make_tar, make_zip])
def test_bombs_stop_at_the_limit(tmp_path, maker):
    path = maker(
        tmp_path / ("x.zip" if maker is make_zip else "x.tar.gz"), [(f"{i}.bvh", bytes(300_000)) for i in range(9)]
    )
    with pytest.raises(FileError, match="unpacks to more than 1000000 bytes"):
        list(iter_motion_files(path, max_bytes=1_000_000))
    with pytest.raises(FileError, match="more than 3 members"):
        list(iter_motion_files(path, max_files=3))


def test_huge_header_of_a_small_archive_is_refused(tmp_path):
    """A pax header is read whole by tarfile: a compressed gigabyte there must not become memory."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    import gzip

    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    with pytest.raises(FileError, match="unpacks to more than"):
        list(iter_motion_files(tmp_path / "x.tar.gz"))


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".zip"])
def test_damaged_archives_say_so(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    noise = bytes(range(256)) * 40
    maker = make_zip if suffix == ".zip" else lambda p, m: make_tar(p, m, "w:xz" if "xz" in suffix else "w:gz")
    data = maker(path, [("a.bvh", noise), ("b.bvh", noise)]).read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"not an archive", data[:60] + b"\xff" * 20 + data[80:]):
        path.write_bytes(damaged)
        with pytest.raises(FileError):
            list(iter_motion_files(path))


def test_links_in_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.bvh").write_bytes(BVH)
    (tmp_path / "in/a.bvh").symlink_to(tmp_path / "out.bvh")
    with pytest.raises(FileError, match="leads out of"):
        list(iter_motion_files(tmp_path / "in"))
    assert [n for n, _ in iter_motion_files(tmp_path / "in", follow_links=True)] == ["a.bvh"]
    with pytest.raises(FileError, match="no file or folder"):
        list(iter_motion_files(tmp_path / "missing"))


def test_real_archive(shared_data):
    names = [name for name, _ in iter_motion_files(shared_data / "deepmimic.tar.xz")]
    assert len(names) == 24 and names == sorted(names) and "deepmimic/dm_walk.bvh" in names
