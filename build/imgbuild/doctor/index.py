"""Does the package index answer? Asked with uv, which is also what installs."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, error, info, ok, warning
from imgbuild.doctor.probe import TIMED_OUT
from imgbuild.errors import ConfigError
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.doctor.situation import Situation

SECONDS = 25
REQUIREMENT = "packaging"
"""Small, pure Python, and in every index that can serve this project."""

NAMES_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+")


@dataclass(frozen=True)
class Index:
    id: str = "index"

    def __call__(self, s: Situation) -> list[Finding]:
        env = s.probe.env
        if s.offline:
            return [info(self.id, "not asked: offline")]
        if env.get("UV_NO_INDEX") or env.get("PIP_NO_INDEX"):
            return [
                info(self.id, "not asked: the environment says that there is no index, only wheel folders")
            ]
        if s.probe.uv is None:
            return [
                error(
                    self.id,
                    "the program uv is missing; it comes with imgbuild's own packages",
                    "pip install uv",
                )
            ]
        try:
            settings = read_settings(env)
        except ConfigError:
            return [info(self.id, "not asked: the certificate bundle has to be mended first")]
        with tempfile.TemporaryDirectory(prefix="imgbuild-doctor-") as folder:
            asked = s.probe.run(
                *(s.probe.uv, "pip", "install", "--dry-run", "--no-cache", "--no-deps"),
                *("--python", s.probe.python, "--target", str(Path(folder, "target")), REQUIREMENT),
                timeout=SECONDS,
                env={**settings.environment({}), "UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"},
            )
        if asked.returncode == 0:
            return [ok(self.id, f"the package index ({_named_by(env)}) answers")]
        why = f"no answer within {SECONDS} s" if asked.returncode == TIMED_OUT else _reason(asked.stderr)
        return [
            warning(
                self.id,
                f"the package index ({_named_by(env)}) cannot be used: {why}",
                "check UV_DEFAULT_INDEX or PIP_INDEX_URL, SSL_CERT_FILE and HTTPS_PROXY",
                "a build works without it only from wheel folders (imgbuild build --wheels DIR) or a warm cache",
            )
        ]


def _named_by(env: Mapping[str, str]) -> str:
    return next((name for name in NAMES_INDEX if env.get(name)), "uv's default")


def _reason(stderr: str) -> str:
    """The last cause that uv gives, without addresses: they may hold a password."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith("hint:")]
    return URL.sub("…", causes[-1].removeprefix("cause: ")) if causes else "no reason given"
