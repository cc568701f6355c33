"""Mending what the checks found, on Debian and Ubuntu, as root; elsewhere saying how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgbuild.doctor.mend.host import survey
from imgbuild.doctor.mend.plan import UPDATE, ensure, wants_packages
from imgbuild.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgbuild.doctor.finding import Finding
    from imgbuild.doctor.mend.hands import Hands
    from imgbuild.doctor.mend.steps import Step

ROUNDS = 3
"""Some things can only be seen once others are mended: the image store once the engine answers."""


def fix(
    hands: Hands,
    findings: list[Finding],
    *,
    examine: Callable[[], list[Finding]],
    tell: Callable[[Step], None],
) -> list[Finding]:
    """Do the steps, look again, until nothing is left that can be mended; return the last findings.

    `tell` is called before each step. EngineError when this machine is not one to be mended from here, or a
    step fails; what was done until then stays, and a second call goes on from there.
    """
    done: list[list[Step]] = []
    fetched = False
    for _ in range(ROUNDS):
        if not any(f.fixable for f in findings):
            break
        host = survey(hands.probe)
        if host.refusal:
            raise EngineError(host.refusal, hint="the commands are above; or: sudo imgbuild doctor --fix")
        steps = ensure(findings, host, fresh=True)  # before the first step: a broken daemon.json stops here
        if wants_packages(findings, host) and not fetched:
            _do(UPDATE, hands, tell)
            fetched = True
            host = survey(hands.probe)
            steps = ensure(findings, host, fresh=True)
        if not steps or steps in done:
            break
        done.append(steps)
        for step in steps:
            _do(step, hands, tell)
        findings = examine()
    return findings


def _do(step: Step, hands: Hands, tell: Callable[[Step], None]) -> None:
    tell(step)
    step.apply(hands)
