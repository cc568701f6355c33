"""Stands in for ComfyUI's main.py: the same routes, log lines and ways to end, in a tenth of a second.

    python fakeui.py PORT [WORD ...]

A job is what is posted to /prompt: {"seconds": 1, "deaf": false, "log": [...]}.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = sys.argv[2:]


class Comfy:
    def __init__(self) -> None:
        self.waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        self.running = 0
        self.interrupted = threading.Event()

    def left(self) -> int:
        return self.waiting.qsize() + self.running

    def clear(self) -> None:
        while self.waiting.qsize():
            self.waiting.get()

    def work(self) -> None:
        while True:
            job = self.waiting.get()
            self.running = 1
            self.interrupted.clear()
            log("got prompt")
            for line in job.get("log", []):
                log(line)
            until = time.monotonic() + job.get("seconds", 0)
            while time.monotonic() < until:
                time.sleep(0.01)
                if self.interrupted.is_set() and not job.get("deaf"):
                    log("[INFO] Processing interrupted")
                    break
            else:
                log("[INFO] the job is whole")
            log("[INFO] Prompt executed in 0.10 seconds")
            self.running = 0
            if "die" in job:
                raise RuntimeError(job["die"])


COMFY = Comfy()


def log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/system_stats":
            kind = "cpu" if "--cpu" in WORDS or "on-cpu" in WORDS else "cuda"
            self.answer({"system": {}, "devices": [{"name": f"{kind} of a test", "type": kind, "index": 0}]})
        elif self.path == "/prompt":
            if "hang" in WORDS:
                time.sleep(60)
            self.answer({"exec_info": {"queue_remaining": COMFY.left()}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match self.path:
            case "/prompt":
                COMFY.waiting.put(body)
            case "/queue":
                COMFY.clear()
            case "/interrupt":
                COMFY.interrupted.set()
        self.answer({})

    def answer(self, value: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_arguments: object) -> None:
        pass


def at_start() -> None:
    if "deaf-int" in WORDS:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "deaf-term" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "leave-a-child" in WORDS:
        subprocess.Popen(["sleep", "60"])
    if "secret" in WORDS:
        log(f"[INFO] logged in with {os.environ['HF_TOKEN']}")
    if "raise" in WORDS:
        raise ModuleNotFoundError("No module named 'what_a_node_needs'")
    for word in WORDS:
        if word.startswith("exit-"):
            log("[ERROR] it cannot be")
            sys.exit(int(word.removeprefix("exit-")))
        if word.startswith("signal-"):
            os.kill(os.getpid(), int(word.removeprefix("signal-")))
    if "slow-start" in WORDS:
        log("[INFO] starting")
        time.sleep(60)


def go_with(parent: int) -> None:
    """A test that kills its comfyrun leaves nobody to end this."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(9)


def main() -> None:
    threading.Thread(target=go_with, args=(os.getppid(),), daemon=True).start()
    at_start()
    sys.stdout.write("half a line")
    sys.stdout.flush()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    threading.Thread(target=COMFY.work, daemon=True, name="Thread-7 (prompt_worker)").start()
    sys.stdout.write(", and the rest\n")
    sys.stdout.flush()
    log("\x1b[32m[INFO]\x1b[0m Starting server")
    try:
        server.serve_forever(0.02)
    except KeyboardInterrupt:
        if "untidy" in WORDS:
            sys.exit(3)
        log("[INFO] Stopped server")
        if "aborts" in WORDS:
            os.abort()
        if "lingers" in WORDS:
            time.sleep(60)


if __name__ == "__main__":
    main()
