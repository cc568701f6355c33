"""Does a container registry answer? Without one the base is bootstrapped from the Debian mirror."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, info, ok
from imgbuild.doctor.situation import SAMPLE_IMAGE, Answer

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation


@dataclass(frozen=True)
class Registry:
    id: str = "registry"

    def __call__(self, s: Situation) -> list[Finding]:
        match s.registry:
            case Answer.YES:
                return [ok(self.id, f"a container registry answers for {SAMPLE_IMAGE}")]
            case Answer.NO:
                return [
                    info(
                        self.id,
                        "no container registry answers: the base will be bootstrapped from the Debian mirror",
                        "nothing to do; to use a registry, check the proxy (HTTPS_PROXY) and "
                        f"docker buildx imagetools inspect {SAMPLE_IMAGE}",
                    )
                ]
            case Answer.NOT_ASKED:
                why = "offline" if s.offline else "there is no docker buildx to ask with"
                return [info(self.id, f"not asked: {why}")]
