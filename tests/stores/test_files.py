"""Files and folders in a store: what a mounted file system does at once takes care here."""

import errno
import gc
import os
import sys
from unittest import mock

import fsspec
import pytest
from aiohttp import ClientConnectionError, ClientOSError
from etils import epath
from fsspec.exceptions import FSTimeoutError
from gcsfs.retry import HttpError
from google.api_core.exceptions import Forbidden, ServiceUnavailable
from google.auth.exceptions import DefaultCredentialsError, TransportError
from google.protobuf.message import DecodeError

from launch import cli
from launch.errors import InputError, Unreachable, store_failure
from launch.files import atomic_file, naming, remove_temporaries, write_atomic
from launch.folders import can_rename, entries, file_names, move
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.checkpoints import seals
from launch.runtime.checkpoints.orbax_options import check_path
from launch.runtime.locks import join, lock, one_at_a_time


@pytest.fixture(params=["store", "disk"])
def folder(request, tmp_path):
    """The same has to hold for both."""
    return epath.Path(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, name.encode())


def test_what_is_there(folder):
    assert entries(folder) == entries(folder / "no") == file_names(folder / "no") == []
    write(folder, "a/b/2", "a/1", "c")
    assert entries(folder) == [folder / "a", folder / "c"]
    assert file_names(folder) == ["a/1", "a/b/2", "c"] and file_names(folder / "a") == ["1", "b/2"]


def test_the_mark_of_a_folder_is_no_file(store, bucket):
    """The console and mounts make an object with the folder's name and a slash."""
    write(bucket, "a/1")
    store.put(bucket.parts[-1], "a/", b"")
    assert entries(bucket / "a") == [bucket / "a" / "1"] and file_names(bucket / "a") == ["1"]
    seals.seal(bucket / "a", 0, 1, {})
    assert not seals.find_fault(bucket / "a")


def test_what_another_process_writes_is_seen(store, bucket):
    write(bucket, "a/1")
    assert [path.name for path in entries(bucket / "a")] == ["1"]
    store.put(bucket.parts[-1], "a/2", b"")
    del store.objects[bucket.parts[-1], "a/1"]
    assert [path.name for path in entries(bucket / "a")] == ["2"]
    assert (bucket / "a" / "2").exists() and not (bucket / "a" / "1").exists()
    assert list(bucket.glob("a/*")) == [bucket / "a" / "2"]


@pytest.mark.parametrize("data", [b"", b"\r", b"a\r\n", b"\n", b"--==0==--\r\n\r\n"])
def test_bytes_come_back(folder, data):
    write_atomic(folder / "file", data)
    assert (folder / "file").read_bytes() == data
    assert (folder / "file").stat().length == len(data)


def test_moving(folder):
    write(folder, "a/b/2", "a/1", "c")
    move(folder / "a", folder / "d")
    assert file_names(folder) == ["c", "d/1", "d/b/2"]
    assert (folder / "d/b/2").read_text() == "a/b/2"


def test_a_mount_that_renames_no_folders(tmp_path, monkeypatch):
    rename = os.rename

    def refused(source, target):
        if os.path.isdir(source):
            raise OSError(24, "Too many open files", str(source))  # as gcsfuse says it
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    folder = epath.Path(tmp_path)
    assert not can_rename(folder) and entries(folder) == []
    write(folder, "a/b/2", "a/1")
    move(folder / "a", folder / "d")
    assert file_names(folder) == ["d/1", "d/b/2"]
    with atomic_folder(folder / "whole") as whole:
        write(whole, "1")
        assert file_names(folder / "whole") == [".lock", ".unfinished", "1"]
    assert file_names(folder / "whole") == ["1"]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp
@pytest.mark.parametrize("size", [3, 60_000_000], ids=["at once", "in parts"])
def test_an_upload_that_fails_leaves_nothing(store, bucket, size):
    path, store.refuse = bucket / "file", "file"
    with pytest.raises(OSError, match="Forbidden"):
        write_atomic(path, bytes(size))
    store.refuse = None
    # A file that nobody has any more is closed.
    gc.collect()
    assert not path.exists()
    write_atomic(path, bytes(size))
    assert path.stat().length == size


def test_an_error_while_writing_leaves_nothing(folder):
    with pytest.raises(ZeroDivisionError), atomic_file(folder / "file") as file:
        file.write(b"1")
        1 / 0  # noqa: B018
    assert entries(folder) == []


def test_a_folder_is_whole_or_not_there(folder):
    with pytest.raises(ZeroDivisionError), atomic_folder(folder / "whole") as whole:
        write(whole, "a/1")
        1 / 0  # noqa: B018
    check_target(folder / "whole")
    with atomic_folder(folder / "whole") as whole:
        write(whole, "a/2")
    assert file_names(folder) == ["whole/a/2"]
    with pytest.raises(InputError, match=r"--to must be an empty folder, got .*whole"):
        check_target(folder / "whole")


def test_seals(store, folder):
    write(folder, "s/a/1", "s/2")
    seals.seal(folder / "s", 1, 2, {})
    assert seals.is_cut_off(folder / "s") and not seals.is_sealed(folder / "s")
    seals.seal(folder / "s", 0, 2, {"step": 3})
    assert seals.is_sealed(folder / "s") and not seals.find_fault(folder / "s")
    assert seals.read_facts(folder / "s") == {"step": 3}
    write(folder, "s/3")
    assert "3 is not one of the checkpoint's files" in seals.find_fault(folder / "s")
    (folder / "s/3").unlink()
    (folder / "s/2").write_text("?")
    assert "2 is damaged" in seals.find_fault(folder / "s")
    (folder / "s/2").unlink()
    assert "2 is missing" in seals.find_fault(folder / "s")
    seals.break_seal(folder / "s")
    assert seals.is_cut_off(folder / "s") and file_names(folder / "s") == ["a/1"]


def test_a_store_has_no_locks(bucket):
    lock(bucket / "a")
    join(bucket / "a", 0, 2)
    with one_at_a_time(bucket / "a"):
        remove_temporaries(bucket / "a")
    assert entries(bucket) == []


@pytest.mark.parametrize(
    "name", ["gs://a", "gs://Upper/run", "gs://", "gs://bucket/a*b", "gs://bucket/a#b"]
)
def test_names_that_nothing_can_be_saved_under(name):
    with pytest.raises(InputError):
        check_path(name)


def test_every_third_request_fails(store, bucket):
    store.fail_every = 3
    write(bucket, "a", "b", "c", "d")
    store.fail_every = 0
    assert file_names(bucket) == ["a", "b", "c", "d"]


def test_what_is_forbidden(store, bucket):
    store.refuse = "secret"
    with pytest.raises(OSError) as error:
        write(bucket, "secret")
    failure = store_failure(error.value)
    assert isinstance(failure, InputError) and str(failure).startswith(f"{bucket}/secret: ")
    assert "\n" not in str(failure) and "ask for access" in str(failure)


@pytest.mark.parametrize("code", [0, 403, 502, 503])
def test_a_store_that_says_nothing_of_a_folder(store, bucket, code):
    """That is no damage: a checkpoint would be set aside for it."""
    write(bucket, "s/a")
    seals.seal(bucket / "s", 0, 1, {"step": 3})
    store.outage = code
    for ask in (seals.find_fault, seals.read_facts):
        with pytest.raises(Exception) as error:
            ask(bucket / "s")
        kind = InputError if code == 403 else Unreachable
        assert isinstance(store_failure(error.value), kind)


def lost_connection():
    error = ClientOSError(errno.ECONNRESET, "reset\nby peer")
    with naming("gs://bucket/a"):
        raise error


def missing_bucket():
    error = FileNotFoundError("b/bucket/o")
    error.add_note("gs://bucket/a")
    raise error


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (raising(HttpError({"code": 503, "message": "try\nagain"})), 75),
        (raising(HttpError({"code": 401, "message": "no"})), 2),
        (raising(ClientConnectionError()), 75),
        (lost_connection, 75),
        (missing_bucket, 2),
        (raising(FSTimeoutError()), 75),
        (raising(ValueError("UNAVAILABLE: Error reading gs://bucket/a")), 75),
        (raising(ValueError("PERMISSION_DENIED: Error reading gs://bucket/a")), 2),
        (raising(ValueError("Bad Request: b/bucket/o\ninvalid name")), 2),
        (raising(ServiceUnavailable("later")), 75),
        (raising(Forbidden("no")), 2),
        (raising(TransportError("no route")), 75),
        (raising(DefaultCredentialsError("no login")), 2),
    ],
)
def test_how_a_store_ends_a_command(capsys, command, code):
    assert cli.exit_code(command, "go on") == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("run the same command again" in said) == (code == 75)
    assert command != missing_bucket or "gs://bucket/a: " in said


@pytest.mark.parametrize("error", [ValueError("of our own"), DecodeError(), TimeoutError()])
def test_errors_of_others(error):
    assert store_failure(error) is None


def test_a_path_without_the_packages_for_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with mock.patch.dict("fsspec.registry._registry", clear=True):
        assert cli.exit_code(lambda: fsspec.core.url_to_fs("gs://bucket/a"), "go on") == 2
    assert 'pip install ".[gcs]" first' in capsys.readouterr().err
