"""Every kind of bad tar is refused by `index` in one line and listed by `verify` with all its other faults."""

import pickle
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from tars import RULES, class_folders, good_members, npy, picture, sample_members, write_tar

from pipeline import prepare
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.errors import InputError


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "s000.png"
    return [(info, b"")]


def renamed(number, prefix):
    return [(prefix + name, data) for name, data in sample_members(number)]


def with_image(data, extension="png", key="zzz"):
    return [(f"{key}.json", b'{"class": "ant"}'), (f"{key}.{extension}", data)]


def huge_png():
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk


A, B = sample_members(7)
BAD = {
    "duplicate key": (sample_members(0), "'s000.json' occurs twice"),
    "duplicate member": ([A, A, B], "'s007.json' occurs twice"),
    "not adjacent": ([A, *sample_members(8), B], "members of sample 's007' are not adjacent"),
    "parent folder": (renamed(7, "../"), "'../s007.json' leaves its folder"),
    "inner parent folder": (renamed(7, "a/../"), "leaves its folder"),
    "absolute": (renamed(7, "/etc/"), "'/etc/s007.json' is absolute"),
    "windows": (renamed(7, "C:\\"), "is absolute"),
    "control characters": ([("a\nb.json", b"{}")], "control characters"),
    "symbolic link": (special("x.png", tarfile.SYMTYPE), "'x.png' is a symbolic link"),
    "hard link": (special("x.png", tarfile.LNKTYPE), "'x.png' is a hard link"),
    "device": (special("x.png", tarfile.CHRTYPE), "'x.png' is a character device"),
    "block device": (special("x.png", tarfile.BLKTYPE), "'x.png' is a block device"),
    "pipe": (special("x.png", tarfile.FIFOTYPE), "'x.png' is a pipe"),
    "no image": ([A], "'s007' has no image member, only json"),
    "no class": ([("zzz.png", B[1])], "'zzz' has no 'class'; give it a JSON member"),
    "other field": ([("zzz.json", b'{"kind": 3}'), ("zzz.png", B[1])], "give --class-field, one of kind"),
    "strange class": ([("zzz.json", b'{"class": [1]}'), ("zzz.png", B[1])], r"has class \[1\]"),
    "blank class": ([("zzz.json", b'{"class": " "}'), ("zzz.png", B[1])], "has class ' '"),
    "no JSON": ([("zzz.json", b'{"class'), ("zzz.png", B[1])], "damaged JSON in 'zzz.json'"),
    "deep JSON": ([("zzz.json", b"[" * 100_000), ("zzz.png", B[1])], "damaged JSON in 'zzz.json'"),
    "JSON list": ([("zzz.json", b"[]"), ("zzz.png", B[1])], "no object"),
    "no extension": ([("zzz", b"x")], "'zzz' is no KEY.EXTENSION"),
    "two images": ([*with_image(B[1]), ("zzz.jpg", B[1])], "two image members, 'zzz.png' and 'zzz.jpg'"),
    "no picture": (with_image(b"hello"), "'zzz.png': not a whole image"),
    "empty picture": (with_image(b""), "'zzz.png' has 0 bytes"),
    "flipped pixel": (with_image(B[1][:-20] + b"!" + B[1][-19:]), "'zzz.png': PNG is damaged"),
    "cut picture": (with_image(B[1][:-5]), "'zzz.png': PNG is cut off"),
    "huge picture": (with_image(huge_png()), "50000 x 50000 is more than"),
    "two stores": (with_image(npy(picture(0)), "npy"), "has a raw image, 's000' a encoded one"),
    "mask of another size": ([*with_image(B[1]), ("zzz.mask.png", encode_png(picture(0, 9)))], r"mask of \(9, 9\)"),
}
TWICE = {"duplicate key", "parent folder", "inner parent folder", "absolute", "windows"}
"""These are the fault of each of a sample's two members."""
BAD_NPY = {
    "object array": (npy(np.array([[{}]], object)), "is no npy array of numbers"),
    "fortran": (npy(np.asfortranarray(np.zeros((6, 5, 2), np.uint8))), "C order"),
    "short": (npy(picture(0))[:-1], "163 bytes do not fit"),
    "long": (npy(picture(0)) + b"x", "165 bytes do not fit"),
    "flat": (npy(np.zeros(6, np.uint8)), "is not"),
    "huge": (npy(picture(0)).replace(b"(6, 6, 1)", b"(9999999, 9999999, 9)"[:9]), "is no npy"),
    "no header": (b"\x93NUMPY\1\0\xff\xff", "is no npy array"),
    "text": (b"text", "is no npy array"),
    "mixed sizes": (npy(picture(0, 7)), r"is \(7, 7, 1\) \|u1, 's000' is \(6, 6, 1\) \|u1; raw images must be of one"),
    "mixed dtypes": (npy(picture(0).astype(np.uint16)), r"is \(6, 6, 1\) <u2"),
}


def refused_and_listed(folder, words, *, count=1):
    with pytest.raises(InputError, match=words):
        prepare.index([folder], out=None, **RULES)
    assert not (folder / "index" / "manifest.json").exists()
    faults = prepare.verify(folder)
    assert "no index" in faults[0] and len(faults) == 1 + count
    assert all("\n" not in fault for fault in faults)
    return faults[1:]


@pytest.mark.parametrize("kind", BAD)
def test_bad_members(tmp_path, kind):
    members, words = BAD[kind]
    write_tar(tmp_path / "x.tar", good_members(3) + members)
    refused_and_listed(tmp_path, words, count=2 if kind in TWICE else 1)


@pytest.mark.parametrize("kind", BAD_NPY)
def test_bad_arrays(tmp_path, kind):
    data, words = BAD_NPY[kind]
    write_tar(tmp_path / "x.tar", with_image(npy(picture(0)), "npy", "s000") + with_image(data, "npy"))
    refused_and_listed(tmp_path, words)


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pyd", "pth", "pt", "meta.pkl", "PKL", "joblib"])
def test_a_pickle_is_never_opened(tmp_path, extension):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    write_tar(tmp_path / "x.tar", good_members(1) + with_image(B[1]) + [(f"zzz.{extension}", bomb)])
    refused_and_listed(tmp_path, "is a pickle, which could run code, and is not opened")
    write_tar(tmp_path / "x.tar", with_image(npy(np.array([[[Bomb(tmp_path / "exploded")]]], object)), "npy"))
    refused_and_listed(tmp_path, "is no npy array of numbers")
    assert not (tmp_path / "exploded").exists()


PLACES = (
    "in a header",
    "before a header",
    "in data",
    "in padding",
    "after a member",
    "in the end mark",
    "after half an end mark",
)


def places(path):
    """Where to cut a tar in or after its last member, and what is then said."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size
    padded = end + -end % 512
    return {
        "in a header": (last.offset + 100, "truncated inside a header"),
        "before a header": (last.offset, "the end mark .* is missing"),
        "in data": (last.offset_data + last.size // 2, f"bytes are left of a member of {last.size}"),
        "in padding": (end + 3, "truncated inside the padding"),
        "after a member": (padded, "the end mark .* is missing"),
        "in the end mark": (padded + 700, "truncated inside the end mark"),
        "after half an end mark": (padded + 512, "truncated inside the end mark"),
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_truncated_tars(tmp_path, place, kind):
    path = write_tar(tmp_path / "x.tar", good_members(3), kind=kind)
    length, words = places(path)[place]
    path.write_bytes(path.read_bytes()[:length])
    sample_too = {"in a header", "before a header", "in data"}
    refused_and_listed(tmp_path, words, count=2 if place in sample_too else 1)


def test_all_faults_are_listed_not_the_first(tmp_path):
    renamed_apart = [
        (name.replace("zzz", f"z{number}") if isinstance(name, str) else name, data)
        for number, (members, _) in enumerate(BAD.values())
        for name, data in members
    ]
    write_tar(tmp_path / "x.tar", renamed_apart + with_image(B[1], key="last"))
    write_tar(tmp_path / "y.tar", good_members(2) + with_image(b"no", key="yyy"))
    faults = "\n".join(prepare.verify(tmp_path))
    for name in (
        "symbolic link",
        "character device",
        "is absolute",
        "50000 x 50000",
        "occurs twice",
        "y.tar: sample 'yyy'",
    ):
        assert name in faults


def test_a_damaged_header_does_not_hide_what_follows(tmp_path):
    path = write_tar(tmp_path / "x.tar", good_members(4) + with_image(b"no"))
    with tarfile.open(path) as tar:
        first, third = tar.getmembers()[2].offset, tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[first : first + 512] = bytes(512)
    data[third + 5] ^= 1
    path.write_bytes(data)
    faults = prepare.verify(tmp_path)[1:]
    assert f"at byte {first}: a block of zeros" in faults[0] and f"at byte {third}: a damaged header" in faults[1]
    assert any("'zzz.png': not a whole image" in fault for fault in faults)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([(b"g", b"21 path=s000.json\n\0\0\0")], "damaged extended header"),
        ([(b"g", b"18 path=s000.json\n")], "global header that renames"),
        ([(b"x", b"14 path=a.png\n"), (b"x", b"14 path=b.png\n")], "second extended header for one member"),
        ([(b"L", b"a.png\0"), (b"x", b"14 path=b.png\n")], "second extended header for one member"),
        ([(b"x", b"11 size=-5\n")], "damaged extended header"),
        ([(b"x", b"99 path=a.png\n")], "damaged extended header"),
        ([(b"L", b"../a.png\0")], "leaves its folder"),
    ],
)
def test_headers_that_readers_take_differently(tmp_path, headers, words):
    content = b""
    for kind, data in headers:
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, len(data)
        content += info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(512, b"\0")
    path = write_tar(tmp_path / "x.tar", good_members(2))
    path.write_bytes(content + path.read_bytes())
    assert words in "\n".join(prepare.verify(tmp_path))


def test_compressed_and_joined_tars(tmp_path):
    path = write_tar(tmp_path / "x.tar", good_members(2))
    data = path.read_bytes()
    path.write_bytes(data + write_tar(tmp_path / "y" / "y.tar", with_image(B[1])).read_bytes())
    refused_and_listed(tmp_path, "a block of zeros where a header should be")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "y" / "y.tar", "zzz.bin")
    assert "compressed data" in prepare.verify(tmp_path)[1]


def test_empty_tars(tmp_path):
    write_tar(tmp_path / "x.tar", [])
    refused_and_listed(tmp_path, "x.tar: holds no sample")
    (tmp_path / "x.tar").write_bytes(b"")
    refused_and_listed(tmp_path, "the end mark")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    prepare.pack(str(class_folders(root / "in")), root / "out", layout="folder", size=None, rule="train=0.5,test=0.5")
    return root / "out"


@pytest.fixture
def data(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "data")
    return tmp_path / "data"


def test_a_good_data_set_has_no_faults(data):
    assert prepare.verify(data) == []


def test_a_flipped_byte_is_traced_to_its_sample(data):
    index = Index.open(data)
    location = index.locate(5, "image")
    content = bytearray(index.path(0).read_bytes())
    content[location.offset + location.size - 1] ^= 4
    index.path(0).write_bytes(content)
    faults = prepare.verify(data)
    assert len(faults) == 2
    assert "shard-000000.tar: changed since it was indexed (sha256 differs)" in faults[0]
    assert f"sample '{index.key(5)}'" in faults[1]


def test_absent_and_new_shards(data):
    write_tar(data / "new.tar", good_members(1))
    (data / "shard-000000.tar").unlink()
    faults = prepare.verify(data)
    assert "new.tar: is not in the index" in faults[0] and "No such file" in faults[1]


def test_changed_tables_are_noticed(data):
    path = data / "index" / "postings.arrow"
    content = path.read_bytes()
    row = np.array([0, 1, 2, 3], np.int32).tobytes()
    path.write_bytes(content.replace(row, row[::-1], 1))
    assert any("postings.arrow: bytes changed" in fault for fault in prepare.verify(data))


def test_small_classes_and_split_files(data, tmp_path):
    faults = prepare.verify(data, samples_per_class=5)
    assert len(faults) == 3 and "class 'ant' of split 'train' has 4 samples, an episode needs 5" in faults[0]
    (tmp_path / "splits").mkdir()
    for name, text in (("train", "ant\nbee"), ("test", "ant\ncatt"), ("val", "")):
        (tmp_path / "splits" / f"{name}.txt").write_text(text)
    faults = prepare.verify(data, splits=tmp_path / "splits")
    assert len(faults) == 3
    assert "in splits 'test' and 'train'" in faults[1] and "did you mean 'cat'?" in faults[0]
    assert "'val' is empty" in faults[2]


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        prepare.verify(tmp_path / "none")
