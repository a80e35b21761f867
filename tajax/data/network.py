"""Whether files can be downloaded at all, asked before a download that would be tried for minutes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit
from urllib.request import getproxies

_LISTED = 4  # hosts in a message


def check(urls: Iterable[str]) -> None:
    """Fails at once where no host of the addresses has a known name and there is no proxy that would know it.

    Raises:
        ConnectionError: no network. The message names the hosts.
    """
    hosts = sorted({host for url in urls if (host := urlsplit(url).hostname)})
    if not hosts or getproxies():  # a proxy resolves names itself
        return
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, None)
            return
    raise ConnectionError(f"no network: cannot resolve {', '.join(hosts[:_LISTED])}")
