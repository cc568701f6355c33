"""How a child came to its end, in words."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def described(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def likely(code: int, *, oom: bool) -> str:
    """What is behind such an end, as far as that can be told."""
    if oom:
        return (
            "the kernel killed a process of this container because its memory limit was reached: give it more "
            "(docker run --memory), or let ComfyUI pin less of it (--disable-pinned-memory)"
        )
    match -code:
        case signal.SIGKILL:
            return (
                "somebody killed it: the kernel when the machine is out of memory (sudo dmesg | grep -i oom), or a "
                "person"
            )
        case signal.SIGSEGV | signal.SIGBUS | signal.SIGABRT | signal.SIGFPE:
            return (
                "native code crashed: a kernel, a library or a custom node's. COMFY_ATTENTION=sdpa and "
                "COMFY_NODES=off leave the likeliest out, one at a time"
            )
        case signal.SIGILL:
            return "its code uses instructions that this CPU has not"
        case _:
            return ""


def oom_kills() -> int:
    """How often the kernel has killed in this container for want of memory; 0 where it does not say."""
    for name in ("memory.events", "memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            for line in (CGROUP / name).read_text(encoding="ascii").splitlines():
                key, _, count = line.partition(" ")
                if key == "oom_kill":
                    return int(count)
    return 0
