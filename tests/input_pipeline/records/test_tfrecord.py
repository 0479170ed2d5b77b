import pickle
import struct

import fsspec
import pytest

from input_pipeline.records import byte_ranges
from input_pipeline.records.tfrecord import TFRecordFile, masked_crc, write_tfrecord
from launch import files
from launch.errors import InputError

RECORDS = [b"123456789", b"", b"abc" * 7]
STARTS = [0, 25, 41]  # 12 bytes of header and 4 of footer a record
SIZE = 78


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.tfrecord"
    written = write_tfrecord(path, RECORDS)
    assert written == (SIZE, files.sha256(path), [len(data) for data in RECORDS])
    return path


def record_at(position):
    return max(i for i, start in enumerate(STARTS) if start <= position)


def crc_bit_by_bit(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_bytes_on_disk(tmp_path):
    write_tfrecord(tmp_path / "x", [b"123456789"])
    # CRC-32C("123456789") = e3069283 (RFC 3720 polynomial's check value); rotated right by 15 bits
    # it is 2507c60d, plus a282ead8 is c78ab0e5. The length, 09 and seven zeros, likewise.
    assert crc_bit_by_bit(b"123456789") == 0xE3069283
    length_crc = crc_bit_by_bit(b"\x09" + bytes(7))
    masked = ((length_crc >> 15 | length_crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert (tmp_path / "x").read_bytes() == (
        b"\x09\0\0\0\0\0\0\0" + struct.pack("<I", masked) + b"123456789" + b"\xe5\xb0\x8a\xc7"
    )


def test_round_trip_in_any_order(path):
    file = pickle.loads(pickle.dumps(TFRecordFile(path)))
    assert len(file) == 3
    assert [file[i] for i in (2, 0, 1)] == [RECORDS[2], RECORDS[0], RECORDS[1]]
    assert list(file) == RECORDS  # ends with IndexError
    assert file.starts.tolist() == [*STARTS, SIZE]
    with pytest.raises(IndexError):
        file[3]


def test_an_empty_shard(tmp_path):
    assert write_tfrecord(tmp_path / "x", []).num_bytes == 0
    assert len(TFRecordFile(tmp_path / "x")) == 0


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_anywhere_is_found_in_its_record(path, bit):
    whole = path.read_bytes()
    for position in range(SIZE):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            list(TFRecordFile(path))
        record = record_at(position)
        part = "length" if position - STARTS[record] < 12 else "data"
        place = f"{path}: record {record} at byte {STARTS[record]}: damaged {part}"
        assert str(error.value).startswith(place), position


def test_other_records_of_a_damaged_shard_stay_readable(path):
    damaged = bytearray(path.read_bytes())
    damaged[STARTS[2] + 12] ^= 1
    path.write_bytes(damaged)
    file = TFRecordFile(path)
    assert file[0] == RECORDS[0]
    with pytest.raises(InputError, match="record 2 at byte 41"):
        file[2]


def test_truncation_anywhere_inside_a_record(path):
    whole = path.read_bytes()
    for size in set(range(SIZE)) - set(STARTS):
        path.write_bytes(whole[:size])
        record = record_at(size)
        with pytest.raises(InputError, match=f"record {record} at byte .*: truncated") as error:
            TFRecordFile(path)
        assert "\n" not in str(error.value)


def test_a_file_cut_after_it_was_indexed(path):
    file = TFRecordFile(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="record 2 at byte 41: truncated"):
        file[2]


@pytest.mark.parametrize("length", [50, 1 << 40, (1 << 64) - 1])
def test_a_huge_length_with_a_right_checksum_allocates_nothing(path, length):
    header = struct.pack("<Q", length)
    whole = path.read_bytes()
    path.write_bytes(whole[:41] + header + struct.pack("<I", masked_crc(header)) + whole[53:])
    with pytest.raises(InputError, match=rf"record 2 at byte 41.*\({length} bytes expected, 21 l"):
        TFRecordFile(path)


def test_missing(tmp_path):
    with pytest.raises(InputError, match="no such shard"):
        TFRecordFile(tmp_path / "missing")
    with pytest.raises(InputError, match="memory://none/x: no such shard"):
        TFRecordFile("memory://none/x")
    with pytest.raises(InputError, match="mount or copy the data"):
        TFRecordFile("nosuch://bucket/x.tfrecord")


@pytest.fixture
def remote(path):
    """The same shard in a store: fsspec's, which gs:// is read by as well."""
    fsspec.filesystem("memory").pipe_file("/tfrecord/x", path.read_bytes())
    return "memory://tfrecord/x"


def test_a_shard_in_a_store(remote):
    file = pickle.loads(pickle.dumps(TFRecordFile(remote)))
    assert [file[i] for i in (2, 0, 1)] == [RECORDS[2], RECORDS[0], RECORDS[1]]
    assert file.starts.tolist() == [*STARTS, SIZE]


@pytest.mark.parametrize("window", [1, 30, 1 << 20])
def test_scan(path, remote, window, monkeypatch):
    monkeypatch.setattr(byte_ranges, "_WINDOW", window)
    ends = TFRecordFile(path).starts[1:].tolist()
    for place in (path, remote):
        assert list(TFRecordFile.scan(place)) == list(zip(ends, RECORDS, strict=True))


def test_scan_goes_on_behind_damaged_data_but_not_a_damaged_length(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:14] + b"X" + whole[15:])
    (_, first), *rest = TFRecordFile.scan(path)
    assert f"{path}: record 0 at byte 0: damaged data" in str(first)
    assert [data for _, data in rest] == RECORDS[1:]
    path.write_bytes(whole[:41] + b"X" + whole[42:])
    scan = TFRecordFile.scan(path)
    assert [next(scan)[1], next(scan)[1]] == RECORDS[:2]
    with pytest.raises(InputError, match="record 2 at byte 41: damaged length"):
        next(scan)


def test_an_index_of_before(path, monkeypatch):
    starts = TFRecordFile(path).starts
    with monkeypatch.context() as patch:
        patch.setattr(byte_ranges, "opened", None)
        file = TFRecordFile(path, starts)
    assert list(file) == RECORDS and file.where(1) == f"{path}: record 1 at byte 25"
    write_tfrecord(path, [b"other data", *RECORDS])
    with pytest.raises(
        InputError, match=r"record 0 at byte 0: (not where the index says|truncated)"
    ):
        file[0]


def test_damage_in_a_store(remote, path):
    store = fsspec.filesystem("memory")
    whole = path.read_bytes()
    store.pipe_file("/tfrecord/x", whole[:54] + b"X" + whole[55:])
    file = TFRecordFile(remote)
    assert file[0] == RECORDS[0]
    with pytest.raises(InputError, match="memory://tfrecord/x: record 2 at byte 41: damaged data"):
        file[2]
    store.pipe_file("/tfrecord/x", whole[:60])
    with pytest.raises(InputError, match="record 2 at byte 41: truncated"):
        file[2]
    with pytest.raises(InputError, match=r"record 2 at byte 41: truncated \(21 bytes expected"):
        TFRecordFile(remote)


def test_an_error_between_records_leaves_nothing(tmp_path):
    def records():
        yield b"one"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_tfrecord(tmp_path / "x", records())
    assert list(tmp_path.iterdir()) == []
