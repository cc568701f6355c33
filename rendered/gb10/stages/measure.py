"""Part of a compile stage: runs a command, shows what it prints, and notes time and memory."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

_EVERY = 3.0  # seconds between two looks at the memory
_KILLED = re.compile(
    r"Killed signal|died due to signal 9|signal 9 \(Kill|: Killed$|^Killed$|terminated by signal 9|Killed\s+\(program"
    r"|\[code=137\]|exit code -9|SIGKILL: 9"
)
_BY_SIGNAL = (-9, 137)
_PAGE = os.sysconf("SC_PAGE_SIZE")


def measured(command: list[str], *, cwd: Path, env: dict[str, str]) -> tuple[int, dict[str, object]]:
    """Status; and seconds, and the most memory (bytes, resident) of all processes together and of one."""
    begun = time.monotonic()
    peak = Peak()
    killed = False
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        # Only now: under emulation a fork out of one of several threads has been seen to hang.
        threading.Thread(target=peak.watch, daemon=True).start()
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            killed = killed or bool(_KILLED.search(line))
    peak.stop.set()
    if process.returncode and (killed or process.returncode in _BY_SIGNAL):
        print("imgbuild: a compiler was killed, most likely because memory ran out", flush=True)
    record = {
        "seconds": round(time.monotonic() - begun, 1),
        "peak_bytes": peak.total,
        "peak_process_bytes": peak.one,
    }
    print(
        f"imgbuild: {record['seconds']} s, at most {peak.total / 1e9:.1f} GB, one process {peak.one / 1e9:.1f} GB"
    )
    return process.returncode, record


class Peak:
    def __init__(self) -> None:
        self.total = self.one = 0
        self.stop = threading.Event()

    def watch(self) -> None:
        pause = 0.2  # soon, for what ends soon
        while not self.stop.wait(pause):
            pause = min(_EVERY, pause * 2)
            sizes = [0]
            for path in Path("/proc").glob("[0-9]*/statm"):
                try:
                    sizes.append(int(path.read_text().split()[1]) * _PAGE)
                except (OSError, IndexError):  # it has ended meanwhile
                    continue
            self.total, self.one = max(self.total, sum(sizes)), max(self.one, *sizes)
