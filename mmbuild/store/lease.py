"""Who holds the only right to write to a place, as the text that a lease's object holds, and whether they still live.

It reads and writes no store; how a lease is taken is the business of each kind of store.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from mmbuild.errors import UserError

# A builder on an object store renews its lease every minute; after five silent ones it is taken for dead.
RENEWAL_S = 60.0
SILENCE_S = 300.0


def holder() -> str:
    """Who holds a lease, and when it last said so (wall clock: it is never part of a corpus)."""
    return json.dumps({"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "renewed": time.time()})


def _machine() -> str:
    """Where a process id means something: the host, this boot of it, and the container (Linux; elsewhere the host)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def is_dead(text: str) -> bool:
    """Whether the holder was silent for too long, or was a process of this machine that is gone."""
    found = json.loads(text)
    if time.time() - found["renewed"] >= SILENCE_S:
        return True
    return found.get("machine") == _machine() and not _is_running(found["pid"])


def is_own(text: str) -> bool:
    found = json.loads(text)
    return bool(found.get("machine") == _machine() and found["pid"] == os.getpid())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def held(url: str, text: str) -> UserError:
    found = json.loads(text or "{}")
    who = f"process {found.get('pid', '?')} on {found.get('host', '?')}"
    return UserError(
        f"another build is writing here ({who})", url, "wait for it or stop it; one build a corpus at a time"
    )
