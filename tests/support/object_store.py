"""An object store that speaks Google's storage API over HTTP, as far as our packages use it.

They are gcsfs, TensorStore and google-cloud-storage; the API is documented at
cloud.google.com/storage/docs/json_api/v1. It keeps everything in memory. As in the real store there
are no folders, listing a missing prefix gives nothing, an upload becomes visible at its end, and a
write can depend on a generation.
"""

import base64
import itertools
import json
import os
import re
import socket
import struct
import threading
import time
import types
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import crc32c
import pytest
from etils import epath

_OBJECT = r"/b/(?P<bucket>[^/]+)/o/(?P<key>[^/]+)"
_MOVE = r"(?P<verb>rewriteTo|copyTo)/b/(?P<to_bucket>[^/]+)|(?P<move>moveTo)"
_PAGE = 1000
# Closing tells the other side at once.
_RESET = struct.pack("ii", 1, 0)


class ObjectStore:
    """A server on this machine while it is entered; every bucket name exists.

    Attributes:
        objects: bytes and generation by (bucket, key).
        requests: method and path of each request, in order.
        sent: bytes of objects that were read.
        fail_every: answers each n-th request that changes something with 503, as the real store
            does now and then, and does nothing; 0 for never.
        refuse: a pattern of keys whose uploads are refused, for lack of permission.
        outage: answers every request with this code; 0 cuts the connection, None for no outage.
    """

    def __init__(self):
        self.objects, self.requests = {}, []
        self.sent, self.fail_every, self.refuse = 0, 0, None
        self.outage = None
        self.uploads, self.lock = {}, threading.RLock()
        self._changes, self._generation = 0, int(time.time() * 1e6)
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"store": self})
        )
        self._server.daemon_threads = True

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self):
        """Variables that make a program take this for Google's store."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "tests",
            # gcsfs would ask for the kind of bucket by gRPC.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def names(self, bucket, prefix=""):
        """The keys of all objects, in order."""
        with self.lock:
            return sorted(k for b, k in self.objects if b == bucket and k.startswith(prefix))

    def copy_folder(self, bucket, prefix, folder):
        """Writes objects under a prefix to files in a folder."""
        for key in self.names(bucket, prefix):
            path = folder / key.removeprefix(prefix).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.objects[bucket, key][0])

    def put(self, bucket, key, data):
        with self.lock:
            self._generation += 1
            self.objects[bucket, key] = bytes(data), self._generation

    def fails_now(self):
        self._changes += 1
        return self.fail_every and self._changes % self.fail_every == 0


class _Handler(BaseHTTPRequestHandler):
    store: ObjectStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # A killed client sends no more.
            self.close_connection = True

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._serve(self._get)

    def do_POST(self):
        self._serve(self._post)

    def do_PUT(self):
        self._serve(self._put)

    def do_DELETE(self):
        self._serve(self._delete)

    def _serve(self, answer):
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.route = re.sub(r"^(/upload|/download)?(/storage/v1)?", "", url.path)
        self.body = self._read_body()
        store = self.store
        with store.lock:
            store.requests.append(f"{self.command} {self.path}")
            if store.outage == 0:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                raise ConnectionError
            if store.outage:
                self._error(store.outage, "outage")
            elif self.command != "GET" and store.fails_now():
                self._json({"error": {"code": 503, "message": "try again"}}, 503)
            else:
                answer()
        self.wfile.flush()

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _get(self):
        if re.fullmatch(r"/b/[^/]+", self.route):
            name = self.route.split("/")[2]
            self._json({"kind": "storage#bucket", "name": name, "id": name, "location": "US"})
        elif re.fullmatch(r"/b/[^/]+/o", self.route):
            self._list(unquote(self.route.split("/")[2]))
        elif match := re.fullmatch(_OBJECT, self.route):
            self._object(unquote(match["bucket"]), unquote(match["key"]))
        else:
            self._error(404, f"no such route: {self.route}")

    def _list(self, bucket):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        first = max(self.query.get("startOffset", ""), self.query.get("pageToken", ""))
        end, size = self.query.get("endOffset"), int(self.query.get("maxResults", _PAGE))
        items, folders, token = [], [], None
        for key in self.store.names(bucket, prefix):
            if key < first or (end and key >= end):
                continue
            inner = key.removeprefix(prefix)
            is_folder = bool(delimiter) and delimiter in inner
            folder = prefix + inner.split(delimiter)[0] + delimiter if is_folder else ""
            if is_folder and folder in folders:
                continue
            if len(items) + len(folders) == size:
                token = folder if is_folder else key
                break
            if is_folder:
                folders.append(folder)
            else:
                items.append(self._resource(bucket, key))
        answer = {"kind": "storage#objects"}
        answer |= {"items": items} if items else {}
        answer |= {"prefixes": folders} if folders else {}
        self._json(answer | ({"nextPageToken": token} if token else {}))

    def _object(self, bucket, key):
        stored = self.store.objects.get((bucket, key))
        if stored is None:
            self._error(404, f"No such object: {bucket}/{key}")
        elif not self._may(bucket, key):
            self._error(412, "conditionNotMet")
        elif self.query.get("ifGenerationNotMatch") == str(stored[1]):
            self._send(304, b"", {})
        elif self.query.get("alt") != "media":
            self._json(self._resource(bucket, key))
        else:
            self._media(bucket, key, *stored)

    def _media(self, bucket, key, data, generation):
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(generation),
            "x-goog-stored-content-length": str(len(data)),
            "X-Goog-Hash": f"crc32c={self._resource(bucket, key)['crc32c']}",
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not data:
            self.store.sent += len(data)
            self._send(200, data, headers)
            return
        first, last = wanted.groups()
        begin = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if begin >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.store.sent += stop - begin
        span = f"bytes {begin}-{stop - 1}/{len(data)}"
        self._send(206, data[begin:stop], headers | {"Content-Range": span})

    def _post(self):
        if "upload_id" in self.query:
            self._chunk()
        elif re.fullmatch(r"/b/[^/]+/o", self.route):
            self._upload(unquote(self.route.split("/")[2]))
        elif match := re.fullmatch(rf"{_OBJECT}/(?:{_MOVE})/o/(?P<to_key>[^/]+)", self.route):
            self._copy({name: unquote(part or "") for name, part in match.groupdict().items()})
        else:
            self._error(404, f"no such route: {self.route}")

    def _put(self):
        self._chunk()

    def _upload(self, bucket):
        kind = self.query.get("uploadType")
        if kind == "media":
            self._store(bucket, self.query["name"], self.body)
        elif kind == "multipart":
            described, data = self._parts()
            self._store(bucket, described.get("name", self.query.get("name")), data)
        else:
            described = json.loads(self.body or b"{}")
            upload = f"{len(self.store.uploads)}-{time.time_ns()}"
            key = self.query.get("name") or described["name"]
            self.store.uploads[upload] = bucket, key, bytearray()
            where = f"{self.store.url}/upload/storage/v1/b/{bucket}/o?upload_id={upload}"
            self._send(200, b"", {"Location": where})

    def _parts(self):
        header = Message()
        header["Content-Type"] = self.headers["Content-Type"]
        boundary = b"--" + header.get_param("boundary").encode()
        # gcsfs ends lines without a carriage return; data may end with one.
        line_end = b"\r\n" if self.body.startswith(boundary + b"\r\n") else b"\n"
        _, described, data = self.body.split(boundary + line_end, 2)
        described, data = (part.split(2 * line_end, 1)[1] for part in (described, data))
        return json.loads(described), data[: data.rindex(line_end + boundary + b"--")]

    def _chunk(self):
        bucket, key, data = self.store.uploads[self.query["upload_id"]]
        span = self.headers.get("Content-Range", "")
        data += self.body
        total = span.rpartition("/")[2]
        if span and (total == "*" or len(data) < int(total)):
            self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
        else:
            self._store(bucket, key, data)

    def _store(self, bucket, key, data):
        if self.store.refuse and re.search(self.store.refuse, key):
            self._error(403, "no permission")
        elif not self._may(bucket, key):
            self._error(412, "conditionNotMet")
        else:
            self.store.put(bucket, key, data)
            self._json(self._resource(bucket, key))

    def _copy(self, names):
        source = names["bucket"], names["key"]
        target = names["to_bucket"] or names["bucket"], names["to_key"]
        if source not in self.store.objects:
            self._error(404, f"No such object: {'/'.join(source)}")
            return
        self.store.put(*target, self.store.objects[source][0])
        if names["move"]:
            del self.store.objects[source]
        resource = self._resource(*target)
        rewritten = {"done": True, "resource": resource, "objectSize": resource["size"]}
        self._json(rewritten if names["verb"] == "rewriteTo" else resource)

    def _delete(self):
        if upload := self.query.get("upload_id"):
            self.store.uploads.pop(upload, None)
            self._error(499, "the upload was cancelled")
            return
        match = re.fullmatch(_OBJECT, self.route)
        name = unquote(match["bucket"]), unquote(match["key"])
        if name not in self.store.objects:
            self._error(404, f"No such object: {'/'.join(name)}")
        elif not self._may(*name):
            self._error(412, "conditionNotMet")
        else:
            del self.store.objects[name]
            self._send(204, b"", {})

    def _may(self, bucket, key):
        expected = self.query.get("ifGenerationMatch")
        there = self.store.objects.get((bucket, key), (b"", 0))[1]
        return expected is None or int(expected) == there

    def _resource(self, bucket, key):
        data, generation = self.store.objects[bucket, key]
        checksum = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(generation / 1e6))
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": key,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "crc32c": checksum,
            "timeCreated": stamp,
            "updated": stamp,
        }

    def _error(self, code, message):
        self._json({"error": {"code": code, "message": message}}, code)

    def _json(self, content, code=200):
        self._send(code, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, code, data, headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def store_server():
    """One server for all tests of this process: packages ask for its address only once."""
    with ObjectStore() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setitem(os.environ, name, value)
        yield store


@pytest.fixture
def store(store_server, monkeypatch):
    """Takes the place of Google's store."""

    async def at_once(seconds):
        pass

    # No waiting before gcsfs asks again.
    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=at_once))
    yield store_server
    store_server.fail_every, store_server.refuse = 0, None
    store_server.outage = None


@pytest.fixture
def bucket(store):
    """An empty bucket."""
    return epath.Path(f"gs://bucket-{next(_NUMBERS)}")
