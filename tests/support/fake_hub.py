"""A server on this machine that answers as the Hugging Face Hub does."""

import hashlib
import http.server
import json

TOKEN = "hf_aTokenThatThisServerKnows"


class FakeHub(http.server.ThreadingHTTPServer):
    """Serves `repositories`: {name: {revision: {path: bytes}}}; notes what was downloaded."""

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.downloads = repositories, []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if len(parts) < 4:
            return self.answer(404)
        owner, name, kind, revision, *path = parts[2:] if api else parts
        revisions = self.server.repositories.get(f"{owner}/{name}")
        if name == "broken":
            return self.answer(500)
        if revisions is None:
            return self.answer(401, X_Error_Code="RepoNotFound")
        commits = {hashlib.sha1(r.encode()).hexdigest(): r for r in revisions}
        revision = commits.get(revision, revision)
        if revision not in revisions:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files, commit = revisions[revision], hashlib.sha1(revision.encode()).hexdigest()
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            table = {"id": f"{owner}/{name}", "sha": commit, "siblings": siblings}
            return self.answer(200, json.dumps(table).encode())
        if kind == "tree":
            listing = [
                {
                    "type": "file",
                    "path": n,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for n, data in files.items()
            ]
            return self.answer(200, json.dumps(listing).encode())
        if name == "gated" and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, X_Error_Code="GatedRepo")
        data = files["/".join(path)]
        if self.command == "GET":
            self.server.downloads.append(f"{owner}/{name}/{'/'.join(path)}")
        etag = hashlib.sha1(data).hexdigest()
        return self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
