"""Points of jobs priced for the explorable report, and the page that prices networks live on loopback."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from deepreshape.cost import LINKS, Layer, Quote, read_link
from deepreshape.counting import count
from deepreshape.models import Architecture, ResNet, Staged
from deepreshape.models.saved import MANIFEST, load, manifest_of
from deepreshape.pricing.quote import PROTOCOLS, Terms, quote_layers
from deepreshape.removal import CoarsePlan, plan, plan_of
from deepreshape.report import Summary
from deepreshape.report.explore import Priced, described, explorable, page

__all__ = ["explore", "live_quote", "page_server", "predicted_seconds"]

READ_S = 10.0
"""How long a reader may take to ask."""
SHOWN = ("lan", "wan", "wireless")


def explore(points: Sequence[Summary], folders: Sequence[Path]) -> dict[str, Any]:
    """Data of the explorable chart, from the saved models of job folders.

    A point whose model is in none of the folders, or that the published systems do not price, is left out.
    """
    priced = [point for point in points if point.priced]  # squares, for one, have no price in published systems
    pairs = [(point, _priced(model, point)) for point in priced if (model := _saved(point, folders))]
    return explorable([point for point, _ in pairs], [priced for _, priced in pairs])


def predicted_seconds(points: Sequence[Summary], folders: Sequence[Path], terms: Terms) -> dict[tuple[str, str], float]:
    """Of one inference under some terms, by network and plan, of the points whose models lie in the folders.

    Raises:
        ValueError: if one cannot be priced under these terms.
    """
    seconds: dict[tuple[str, str], float] = {}
    for point in points:
        if folder := _saved(point, folders):
            model = load(folder)
            layers = count(model, manifest_of(model).architecture.input).priced_layers
            seconds[point.network, point.plan] = quote_layers(layers, terms).seconds
    return seconds


def _saved(point: Summary, folders: Sequence[Path]) -> Path | None:
    saved = [folder / "models" / point.results[0].id for folder in folders]
    return next((path for path in saved if (path / MANIFEST).is_file()), None)


def _priced(folder: Path, point: Summary) -> Priced:
    model = load(folder)
    manifest = manifest_of(model)
    counted = count(model, manifest.architecture.input)
    settings = {
        "data": manifest.dataset,
        "epochs": point.results[0].epochs,
        "seed": point.results[0].seed,
    }
    for entry in manifest.history:
        if "recipe" in entry:
            settings |= entry["recipe"]
    kept = {layer.name: getattr(layer, "relus", 0) for layer in counted.layers}
    return Priced(quotes(counted.priced_layers), _sites(manifest.architecture, kept), settings)


def quotes(
    layers: Sequence[Layer], names: Sequence[str] = SHOWN, protocols: Sequence[str] = PROTOCOLS
) -> dict[str, Quote]:
    """Every protocol on every link."""
    return {
        f"{protocol}, {name}": quote_layers(layers, Terms(protocol, link=read_link(name)))
        for protocol in protocols
        for name in names
    }


def _sites(architecture: Architecture, kept: Mapping[str, int]) -> tuple[tuple[str, int, int], ...]:
    """What is left of every site, masks included."""
    return tuple(
        (site.name, kept.get(site.name, architecture.relus_at(site)), site.relus) for site in architecture.sites()
    )


def live_quote(words: Mapping[str, str]) -> dict[str, Any]:
    """What a HybReNet costs: answers the sliders, by arithmetic and without a trace.

    Args:
        words: as text: ``phi``, ``base``, ``alpha`` ..., ``budget`` (percent of the ReLUs), ``input``, ``wire`` (a
            link), ``kind`` (a protocol).

    Raises:
        ValueError: if one does not fit.
    """
    try:
        phi = tuple(int(part) for part in words["phi"].split(","))
        channels, height, width = (int(part) for part in words["input"].split("x"))
        multipliers = tuple(int(words[name]) for name in ("alpha", "beta", "gamma")[: len(phi) - 1])
        base, percent = int(words["base"]), int(words["budget"])
        wire, kind = words["wire"], words["kind"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"cannot read the settings: {error}") from None
    _check_settings(phi, base, multipliers, (channels, height, width))
    whole = ResNet(phi, base, multipliers, (channels, height, width))
    chosen = _within(whole, percent)
    layers = chosen.architecture.layers()
    point = Priced(quotes(layers, [wire], [kind]), _sites(chosen.architecture, {}), {})
    return {
        "network": _name(whole),
        "plan": str(chosen),
        "relus": chosen.relus,
        "macs": sum(getattr(layer, "macs", 0) for layer in layers),
        "top1": None,
        **described(point),
    }


def _check_settings(phi: tuple[int, ...], base: int, multipliers: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    """Hold every setting to a bound: plans of what is larger would be searched for minutes.

    Raises:
        ValueError: naming the setting, and what would do.
    """
    ranges = {
        "the number of stages": (len(phi), 5),
        "a stage's blocks": (max(phi), 32),
        "base channels": (base, 512),
        "a multiplier": (max(multipliers, default=1), 32),
        "input channels": (shape[0], 16),
        "a side of the input": (max(shape[1:]), 512),
    }
    for what, (value, most) in ranges.items():
        if value > most:
            raise ValueError(f"{what}: {value} is above {most}, the most that this page prices")


def _within(whole: Staged, percent: int) -> CoarsePlan:
    return plan_of(whole) if percent >= 100 else plan(whole, whole.relus * percent // 100)


def _name(architecture: Staged) -> str:
    try:
        return architecture.name
    except ValueError:  # a single stage has no multipliers to be named by
        return str(architecture.phi)


def page_server(port: int, points: Sequence[Summary], folders: Sequence[Path]) -> ThreadingHTTPServer:
    """A server on loopback with the page; the caller runs and closes it.

    Raises:
        OSError: if the port is taken.
    """
    data = {**explore(points, folders), "live": True, "protocols": list(PROTOCOLS), "links": list(LINKS)}
    body = page("DeepReShape: what it costs", data).encode()

    quoting = Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = READ_S

        def do_GET(self) -> None:
            # a page of another site that resolves its name to loopback is not answered
            if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
                self._answer(403, "text/plain", b"loopback only")
                return
            # nor is a request that a page of another site makes; a browser says so, and scripts without one do not
            site = self.headers.get("Sec-Fetch-Site", "none")
            origin = self.headers.get("Origin", f"http://{self.headers['Host']}")
            if site not in ("same-origin", "none") or origin != f"http://{self.headers['Host']}":
                self._answer(403, "text/plain", b"no requests from other pages")
                return
            parts = urlsplit(self.path)
            if parts.path == "/":
                self._answer(200, "text/html; charset=utf-8", body)
            elif parts.path == "/quote":
                with quoting:  # one at a time, and none for a reader who has left while others were answered
                    if not self._left():
                        self._answer(200, "application/json", json.dumps(self._quote(parts.query)).encode())
            else:
                self._answer(404, "text/plain", b"there is / and /quote")

        def _left(self) -> bool:
            if not select.select([self.connection], [], [], 0)[0]:
                return False
            try:
                return not self.connection.recv(1, socket.MSG_PEEK)
            except ConnectionError:
                return True

        def _quote(self, query: str) -> dict[str, Any]:
            try:
                return live_quote({key: values[-1] for key, values in parse_qs(query).items()})
            except ValueError as error:
                return {"error": str(error)}

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
