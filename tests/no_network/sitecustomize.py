"""Refuses every connection off this machine, in this process. On PYTHONPATH it does so in child processes too.

There is one sitecustomize to a process, so what else a test wants to do inside a child process is run from here: the
Python file that HFPRETRAIN_TEST_HOOK names.
"""

import os
import runpy
import socket
from typing import Any

_connect, _lookup = socket.socket.connect, socket.getaddrinfo
_HERE = ("127.", "::1", "localhost")


def connect(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(_HERE):
        raise ConnectionRefusedError(f"tests use no network: {address}")
    _connect(self, address)


def getaddrinfo(host: Any, *arguments: Any, **keywords: Any) -> Any:
    if host and not str(host).startswith(_HERE):
        raise socket.gaierror(f"tests use no network: {host}")
    return _lookup(host, *arguments, **keywords)


socket.socket.connect = connect  # type: ignore[method-assign,assignment]
socket.getaddrinfo = getaddrinfo

if hook := os.environ.get("HFPRETRAIN_TEST_HOOK"):
    runpy.run_path(hook)
