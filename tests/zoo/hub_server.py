"""A hub on this machine alone: the two requests that the client makes for a file, answered from a folder."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def serve(root: Path, commits: dict[str, str]) -> tuple[ThreadingHTTPServer, list[str]]:
    """A server for ``root/owner/name/COMMIT/FILE`` on a free port of 127.0.0.1, and the list of requests it has seen.

    `commits` names the commit of each revision and may be changed while it runs.
    """
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            seen.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").split("/")
            path, commit = None, ""
            if len(parts) >= 5 and parts[2] == "resolve":
                commit = commits.get(parts[3], parts[3])
                path = root / parts[0] / parts[1] / commit / "/".join(parts[4:])
            if path is None or not path.is_file():
                self.send_response(404)
                if len(parts) > 1 and (root / parts[0] / parts[1]).is_dir() and commit in commits.values():
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("X-Repo-Commit", commit)
                else:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, seen
