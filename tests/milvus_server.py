"""A real Milvus standalone server from PyPI, in an environment of its own; `make test-services` installs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PACKAGES = ("milvus==2.3.5", "setuptools<81")  # it imports what later ones have no more
PYTHON = Path(os.environ.get("NEGINDEX_MILVUS_PYTHON", Path(__file__).parents[1] / "build/milvus/bin/python"))
_STARTED = 120.0  # seconds that it may take

_UNPACK = """
import sys
from milvus import MilvusServerConfig, _initialize_data_files
config = MilvusServerConfig(data_dir=sys.argv[1])
config.resolve()
_initialize_data_files(config.base_data_dir)
"""


def ports(count: int) -> list[int]:
    """Free ones on loopback."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


class MilvusServer:
    """One server over one folder; started, stopped and killed by its process id.

    Its own ports are free ones. What can be bound to loopback is: the embedded etcd; the server's own listeners take
    all interfaces, which Milvus 2.3 has no setting for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        subprocess.run([PYTHON, "-c", _UNPACK, str(folder)], check=True, timeout=300)
        self._config = folder / "configs" / "milvus.yaml"
        text = self._config.read_text(encoding="utf-8")
        taken = sorted({*re.findall(r"^  (?:port|internalPort): (\d+)", text, re.MULTILINE)})
        taken += re.findall(r"endpoints: localhost:(\d+)", text)
        fresh = dict(zip(taken, ports(len(taken)), strict=True))
        for old, new in fresh.items():
            text = re.sub(rf"\b{old}\b", str(new), text)
        etcd = folder / "configs" / "etcd.yaml"
        client, peer = (f"http://127.0.0.1:{port}" for port in ports(2))
        said = {"listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer}
        said |= {"initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}"}
        etcd.write_text("".join(f"{name}: {value}\n" for name, value in said.items()), encoding="utf-8")
        text = text.replace("\n  data:\n    dir:", f"\n  config:\n    path: {etcd}\n  data:\n    dir:", 1)
        self._config.write_text(text, encoding="utf-8")
        (self.port,) = map(int, re.findall(r"^proxy:\n(?:.*\n)*?  port: (\d+)", text, re.MULTILINE)[:1])
        (self.metrics,) = ports(1)

    def start(self) -> MilvusServer:
        """Wait until it answers."""
        binary = self.folder / "bin" / "milvus"
        env = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self.metrics),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
            "LD_LIBRARY_PATH": f"{binary.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        }
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [binary, "run", "standalone"], cwd=self.folder, env=env, stdout=log, stderr=log
            )
        end = time.monotonic() + _STARTED
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Milvus did not start in {_STARTED:.0f} s; it said: {said}")
            time.sleep(0.3)
        return self

    def kill(self) -> None:
        """As a power cut would: -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As an operator would; -9 where it takes more than some seconds."""
        self._end(signal.SIGTERM)

    def _end(self, how: int) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/healthz", timeout=5) as told:
                return b"OK" in told.read()
        except OSError:
            return False


if __name__ == "__main__":  # `python tests/milvus_server.py FOLDER`: one to try things with, until it is interrupted
    server = MilvusServer(Path(sys.argv[1]).absolute()).start()
    print(f"milvus://127.0.0.1:{server.port}/NAME", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        server.stop()
