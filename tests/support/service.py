"""A service in a process of its own, and clients that know its certificate's authority."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from support.programs import ONE_RELU
from support.relay import PATIENT

import deepreshape
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.sessions import InferenceClient
from deepreshape.private.parties.store import Store
from deepreshape.private.program.encoding import to_bytes
from deepreshape.private.program.program import Program
from deepreshape.private.service.quotas import Caps
from deepreshape.private.transport.certificates import Credentials, create_authority, issue
from deepreshape.private.transport.tls import Endpoint, Limits

SCRIPT = """
import json, sys
from pathlib import Path
from deepreshape.private.service.quotas import Caps
from deepreshape.private.transport.certificates import Credentials
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.encoding import from_bytes
from deepreshape.private.parties.server import Model
from deepreshape.private.service import service as front
from deepreshape.private.parties.store import Store
from deepreshape.private.transport.tls import Endpoint, Limits, listen

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
program = from_bytes((folder / "program").read_bytes())
endpoint = Endpoint(Credentials.within(folder, "server", "s"), Limits(**settings["limits"]))
door, page = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
tell = lambda line: print(line, flush=True)
front.GRACE_S = settings["grace_s"] or front.GRACE_S
service = front.Service(
    door, endpoint, Model(program, Plan(program.public())), Store(folder / "server"), Caps(**settings["caps"]),
    status_listener=page, notify=tell,
)
tell(f"{door.getsockname()[1]} {page.getsockname()[1]}")
service.run()
tell(json.dumps(service.ended))
"""


@dataclass
class Served:
    """A running service."""

    folder: Path
    program: Program
    process: subprocess.Popen[str]
    port: int
    page: int

    def client(self, name: str = "c", store: str = "") -> InferenceClient:
        """One with a certificate, and a store of its own."""
        if not (self.folder / f"client-{name}.pem").exists():
            issue(self.folder, "client", name)
        endpoint = Endpoint(Credentials.within(self.folder, "client", name), PATIENT)
        plan = Plan(self.program.public())
        return InferenceClient(endpoint, "127.0.0.1", self.port, plan, Store(self.folder / (store or f"store-{name}")))

    def line(self) -> str:
        """The next thing it tells."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def children(self) -> set[int]:
        """Its processes: the status page, and one for each session."""
        return set(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()))

    def stop(self, by: signal.Signals = signal.SIGTERM) -> list[str]:
        """End it; all that it told since."""
        self.process.send_signal(by)
        return self.process.communicate(timeout=60)[0].splitlines()


@contextmanager
def served(
    folder: Path,
    caps: Caps | None = None,
    limits: Limits = PATIENT,
    program: Program = ONE_RELU,
    grace_s: float | None = None,
) -> Iterator[Served]:
    """Run one in ``folder``; the second in the same folder has the same keys and store.

    ``grace_s`` is how long a session may outlive its limit, if not as long as the service says.
    """
    if not (folder / "authority.pem").exists():
        create_authority(folder)
        issue(folder, "server", "s")
    (folder / "program").write_bytes(to_bytes(program))
    settings = json.dumps({"caps": asdict(caps or Caps()), "limits": asdict(limits), "grace_s": grace_s})
    path = os.pathsep.join([str(Path(deepreshape.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), settings],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stderr
            first = process.stdout.readline().split()
            assert first, process.stderr.read()
            yield Served(folder, program, process, *map(int, first))
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=60)
