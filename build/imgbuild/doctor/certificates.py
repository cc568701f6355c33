"""Can the certificate bundles be read that the environment names?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, error, info, ok

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")


@dataclass(frozen=True)
class Certificates:
    id: str = "certificates"

    def __call__(self, s: Situation) -> list[Finding]:
        named: dict[str, list[str]] = {}
        for variable in VARIABLES:
            if path := s.probe.env.get(variable):
                named.setdefault(path, []).append(variable)
        if not named:
            return [info(self.id, "no bundle is named by the environment: the system's own is used")]
        return [self._one(s, path, ", ".join(variables)) for path, variables in named.items()]

    def _one(self, s: Situation, path: str, variables: str) -> Finding:
        remedy = f"make it readable, or unset {variables}"
        try:
            text = s.probe.read(Path(path))
        except OSError as e:
            return error(self.id, f"{variables}: {path} cannot be read: {e.strerror or e}", remedy)
        if text is None:
            return error(self.id, f"{variables}: {path} does not exist", remedy)
        count = text.count("BEGIN CERTIFICATE")
        if not count:
            return error(self.id, f"{variables}: {path} holds no certificate in PEM form", remedy)
        return ok(self.id, f"{path} holds {count} certificates ({variables})")
