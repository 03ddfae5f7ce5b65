"""What a server tells its operator over HTTP, on loopback only: ``/status`` as JSON, ``/metrics`` for Prometheus.

It tells counts, sizes and times, in all and by client, who is named by the first digits of its certificate's
fingerprint. The service writes them to a file whenever they change, and the page, in a process of its own, reads that
file: whoever reads the page, or hangs on it, cannot hold up the service.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deepreshape.private.files import replace_file

READ_S = 5.0
"""How long a reader may take to ask."""
PREFIX = "deepreshape"
TYPES = {"/status": "application/json", "/metrics": "text/plain; version=0.0.4; charset=utf-8"}
GAUGES = {
    "arrivals": "Connections that have not shown a certificate yet.",
    "running": "Sessions at this moment.",
}
OUTCOMES = ("served", "failed", "refused")
CLIENT_GAUGES = {
    "running": "Sessions of a client at this moment.",
    "batches_held": "Offline batches that lie in the store for a client.",
    "queries": "Queries of a client in the last day.",
}
CLIENT_COUNTERS = {
    "prepared": "Batches made for a client.",
    "answered": "Queries of a client that were answered.",
    "failed": "Sessions of a client that failed.",
    "refused": "Sessions of a client that a cap refused.",
    "bytes_sent": "Payload sent to a client.",
    "bytes_received": "Payload received from a client.",
    "seconds": "Time that a client's sessions took.",
}


def write(path: Path, status: dict[str, Any]) -> None:
    """Replace the file that the page reads."""
    replace_file(path, json.dumps(status).encode())


def metrics(status: dict[str, Any]) -> str:
    """The status in Prometheus's text format."""
    lines: list[str] = []

    def family(name: str, kind: str, says: str, rows: dict[str, float]) -> None:
        lines.extend((f"# HELP {PREFIX}_{name} {says}", f"# TYPE {PREFIX}_{name} {kind}"))
        lines.extend(f"{PREFIX}_{name}{labels} {value}" for labels, value in rows.items())

    family("start_time_seconds", "gauge", "When the server was started.", {"": status["began"]})
    for name, says in GAUGES.items():
        family(name, "gauge", says, {"": status[name]})
    ended = {f'{{outcome="{outcome}"}}': status[outcome] for outcome in OUTCOMES}
    family("sessions_total", "counter", "Sessions that have ended, and connections that were refused one.", ended)
    for kind, names, suffix in (("gauge", CLIENT_GAUGES, ""), ("counter", CLIENT_COUNTERS, "_total")):
        for name, says in names.items():
            rows = {f'{{client="{row["client"]}"}}': row[name] for row in status["clients"]}
            family(f"client_{name}{suffix}", kind, says, rows)
    return "\n".join(lines) + "\n"


def serve_page(listener: socket.socket, path: Path) -> None:
    """Answer readers for ever, from the file that :func:`write` writes."""

    class Reader(_Reader):
        source = path

    with _Page(("127.0.0.1", 0), Reader, bind_and_activate=False) as page:
        page.socket.close()
        page.socket = listener
        page.serve_forever()


def check_loopback(listener: socket.socket) -> None:
    """Refuse a socket that other machines can reach.

    Raises:
        ValueError: if it is one.
    """
    host = str(listener.getsockname()[0])
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"the status page listens on {host}; only loopback, such as 127.0.0.1, is allowed")


class _Page(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing of a reader that is gone, or too slow: it may be so at any moment."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Reader(BaseHTTPRequestHandler):
    timeout = READ_S
    server_version, sys_version = PREFIX, ""
    source: Path

    def do_GET(self) -> None:
        # a page of the web that has its own name point to 127.0.0.1 would otherwise read this through a browser
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if name not in ("127.0.0.1", "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "ask for 127.0.0.1 or localhost\n")
        elif self.path not in TYPES:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", f"there are {' and '.join(TYPES)}\n")
        else:
            text = self.source.read_text()
            self._answer(HTTPStatus.OK, TYPES[self.path], metrics(json.loads(text)) if "metrics" in self.path else text)

    def _answer(self, code: HTTPStatus, kind: str, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a reader's words do not belong on the server's terminal."""
