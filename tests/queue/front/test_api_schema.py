"""schemathesis against the running API: what its OpenAPI description says is what it does, whatever it is sent.

The long run: COMFYWORK_SCHEMA_EXAMPLES=1000 pytest tests/queue/front/test_api_schema.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from frontkit import Api, Queue, Worker, Working

EXAMPLES = os.environ.get("COMFYWORK_SCHEMA_EXAMPLES", "15")

# What no schema can say: a link of a workflow to a node that is there, an input that the workflow names, a range that
# the file has. So 422 is a right answer to them. Streams are asked for a moment only.
HOOKS = """
import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.operation.path == "/v1/events" and case.method == "GET":
        seconds = (case.query or {}).get("seconds", 1)
        try:
            long = 0 <= float(seconds) <= 86400
        except (TypeError, ValueError):
            long = False
        if long:
            case.query = {**(case.query or {}), "seconds": 0}
"""
SETTINGS = """
[[operations]]
include-path = "/v1/jobs"
include-method = "POST"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

[[operations]]
include-path = "/v1/inputs"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]
"""


@pytest.mark.parametrize("tenant", ["user001", "staff"])
def test_schemathesis_finds_nothing(api: Api, queue: Queue, tmp_path: Path, tenant: str) -> None:
    pytest.importorskip("schemathesis")
    worker = Worker(queue)
    for _ in range(3):
        queue.submit(tenant)
    worker.complete(worker.take())
    worker.fail(worker.take())
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    with Working(queue, "worker-2"):
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "--config-file", "schemathesis.toml",
                "run", f"{api.url}/openapi.json",
                "--header", f"Authorization: Bearer {api.tokens[tenant]}",
                "--max-examples", EXAMPLES,
                "--checks", "all",
                "--request-timeout", "20",
                "--continue-on-failure",
                "--suppress-health-check", "all",
                "--generation-database", "none",
                "--no-color",
            ],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
