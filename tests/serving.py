"""A real service on this machine's loopback: in a thread, or in processes of its own."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import uvicorn

from negindex.service.app import make_app
from negindex.service.run import bound, config_of
from negindex.service.settings import Settings


@contextlib.contextmanager
def serving(root, *, keyless=True, port=0, images=None, handed=None, spans=None, **settings):
    """A service over ``root`` in a thread; gives its address. Its log lines go nowhere."""
    told = Settings(root=root, port=port, log_level="error", **settings)
    config = config_of(told, functools.partial(make_app, told, keyless, images, handed, spans))
    with bound(told) as listening:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextlib.contextmanager
def processes(root, *words, **environment):
    """`negindex serve` as an operator runs it; gives its address and the process."""
    command = [sys.executable, "-m", "negindex.tools", "serve", str(root), "--port", "0", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    lines = done.lines = []
    reader = threading.Thread(target=lambda: lines.extend(done.stderr), daemon=True)
    reader.start()
    try:
        while not any('"listening"' in line for line in lines):
            assert done.poll() is None, "".join(lines)
            time.sleep(0.01)
        said = next(json.loads(line) for line in lines if '"listening"' in line)
        yield f"{'https' if said['tls'] else 'http'}://127.0.0.1:{said['port']}", done
    finally:
        if done.poll() is None:
            done.send_signal(signal.SIGTERM)
        try:
            done.wait(40)
        finally:
            done.kill()
            reader.join(10)
            done.stdout.close()
            done.stderr.close()


def started(service):
    """Process ids of the workers, in the order that they came up in."""
    return [json.loads(line)["process"] for line in list(service.lines) if '"event": "started"' in line]


def figure(text, name):
    """The sum of a metric's values in what Prometheus would scrape."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))
