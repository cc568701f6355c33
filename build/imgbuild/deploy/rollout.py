"""Another image for what runs, by digest: the one before is kept, and comes back by itself when the new one does not serve."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from imgbuild.deploy.deployment import LABEL, TARGET_LABEL
from imgbuild.deploy.health import Outcome, wait_ready
from imgbuild.deploy.ledger import Entry, Ledger, Record
from imgbuild.deploy.outage import Outage
from imgbuild.deploy.switches import find_switch
from imgbuild.errors import DeploymentError, EngineError, ImgbuildError, SelectionError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgbuild.deploy.containers import Container, Containers, LocalImage
    from imgbuild.deploy.switches import Switch

_SHORT = 12
_REHEARSAL = 120.0
_PATIENCE = 300.0
"""Seconds for the one before, which has served already, to serve again."""
_EVERY = 10.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True, kw_only=True)
class Report:
    name: str
    was: str
    """Digests; equal when there was nothing to do."""
    wanted: str
    changed: bool
    rolled_back: bool = False
    why: str = ""
    log: str = ""
    downtime: float | None = None
    """Seconds without an answer, seen from outside; None where nobody could ask."""
    serves: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rollout:
    containers: Containers
    ledger: Ledger
    now: Callable[[], str]
    say: Callable[[str], None]
    timeout: float = 300
    """Seconds that a new container may take until it takes prompts."""

    def update(self, name: str, reference: str) -> Report:
        """Put the image that `reference` names now into the place of what runs."""
        with self.ledger.alone(self.containers.engine.name, name):
            return self._update(name, reference)

    def rollback(self, name: str) -> Report:
        """Put the image before back."""
        with self.ledger.alone(self.containers.engine.name, name):
            return self._rollback(name)

    def _update(self, name: str, reference: str) -> Report:
        found = self.find(name)
        image = self._image(reference, found)
        if image.id == found.image_id:
            return Report(name=name, was=found.image_id, wanted=image.id, changed=False)
        self._rehearse(reference)
        wanted = self.pin(image, reference, found)
        report = self._switch(name, found, wanted)
        if not report.changed and not self._knows(name, wanted.digest):
            self.containers.untag(wanted.image)  # nobody asks for it again by that name
        return report

    def _rollback(self, name: str) -> Report:
        found = self.find(name)
        before = self._record(name).previous
        if before is None:
            raise SelectionError(
                f"nothing is known of an image before this one of {name}",
                hint=f"imgbuild update {name} --image REF takes any other",
            )
        image = self.containers.image(before.image)
        if image is None or image.id != before.digest:
            raise SelectionError(
                f"the image before ({before.digest[:19]}) is not in {self.containers.engine.name} any more",
                hint="imgbuild pull or build it again, then: imgbuild update --image REF",
            )
        if image.id == found.image_id:
            return Report(name=name, was=found.image_id, wanted=image.id, changed=False)
        return self._switch(name, found, replace(before, since=self.now()))

    def find(self, name: str) -> Container:
        """The container of a deployment, or of that name. SelectionError where there is none, or more than one."""
        found = self.containers.labelled(f"{LABEL}={name}")
        if not found and (own := self.containers.container(name)) is not None and LABEL in own.labels:
            return own
        if not found:
            others = sorted({c.labels[LABEL] for c in self.containers.labelled(LABEL)})
            near = nearest(name, others) if others else None
            raise SelectionError(
                f"{self.containers.engine.name} has no deployment {name}"
                + (
                    f"; did you mean {near}?"
                    if near
                    else f"; there are: {', '.join(others)}"
                    if others
                    else ""
                ),
                hint="imgbuild run --detach, or docker compose -f compose/… up --detach, makes one",
            )
        serving = [c for c in found if not c.name.endswith(("-before", "-next"))] or list(found)
        if len(serving) > 1:
            raise SelectionError(
                f"{name} is there more than once: {', '.join(c.name for c in serving)}",
                hint="name one of them in its place",
            )
        return serving[0]

    def remember(self, name: str, entry: Entry) -> None:
        """`entry` runs now; what ran before is what `rollback` goes to."""
        record = self._record(name)
        if record.current is not None and record.current.digest == entry.digest:
            return
        gone, kept = record.previous, record.current
        self.ledger.write(replace(record, current=entry, previous=kept))
        if gone is not None and gone.digest not in (entry.digest, kept.digest if kept else ""):
            self.containers.untag(gone.image)

    def pin(self, image: LocalImage, reference: str, found: Container | None = None) -> Entry:
        """A tag of its own for this digest, so that it stays when `reference` moves on."""
        target = image.labels.get("imgbuild.target") or (found.labels.get(TARGET_LABEL) if found else None)
        pinned = pinned_name(reference, target or "image", image.id)
        self.containers.tag(image.id, pinned)
        return Entry(image=pinned, digest=image.id, since=self.now())

    # --- the switch ------------------------------------------------------------------------------

    def _switch(self, name: str, found: Container, wanted: Entry) -> Report:
        switch = find_switch(self.containers, self.ledger, found)
        if done := switch.recover():
            self.say(done)
        running = self.containers.image(found.image_id)
        old = self.pin(running, found.image, found) if running else None
        with Outage(switch.url) as outage:
            outcome, back = self._try(switch, wanted, found.restarts)
        report = Report(
            name=name,
            was=found.image_id,
            wanted=wanted.digest,
            changed=outcome.ready,
            rolled_back=back is not None,
            why=outcome.why,
            log=outcome.log,
            downtime=outage.seconds,
            serves=outcome.ready or (back is not None and back.ready),
        )
        if outcome.ready:
            switch.settle()
            record = self._record(name)
            if old and (record.current is None or record.current.digest != old.digest):
                self.ledger.write(replace(record, current=old))
            self.remember(name, wanted)
        return report

    def _rehearse(self, reference: str) -> None:
        """Whether the image can say what it would do, while the old one still serves. Raises DeploymentError."""
        tmp = "/tmp:rw,exec,nosuid,nodev,mode=1777"  # noqa: S108
        done = self.containers.call(
            *("run", "--rm", "--pull", "never", "--network", "none", "--read-only", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--tmpfs", tmp, *self.containers.engine.limits),
            *(reference, "serve", "--print"),
            check=False,
            timeout=_REHEARSAL,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-600:]
            raise DeploymentError(
                f"{reference} cannot even say what it would start (exit code {done.returncode}): nothing was stopped"
                + (f"\n{said}" if said else ""),
                hint=f"{self.containers.engine.name} run --rm {reference} serve --print",
            )

    def _try(self, switch: Switch, wanted: Entry, restarts: int) -> tuple[Outcome, Outcome | None]:
        """How the new one does, and, where it was taken back, how the old one does."""
        self.say(f"{switch.container}: {wanted.image}")
        try:
            switch.replace(wanted.image)
            outcome = wait_ready(self.containers, switch.container, timeout=self.timeout, tick=self._tick())
        except ImgbuildError as e:
            outcome = Outcome(ready=False, seconds=0, why=e.message)
        except BaseException:  # Ctrl-C among them: nobody is left without a server
            self.say("interrupted: the one before is started again")
            switch.undo()
            raise
        if outcome.ready:
            return outcome, None
        self.say(f"the new one does not serve: {outcome.why}; the one before is started again")
        try:
            switch.undo()
        except EngineError as e:
            return outcome, Outcome(ready=False, seconds=0, why=e.message)
        return outcome, wait_ready(
            self.containers,
            switch.container,
            timeout=max(self.timeout, _PATIENCE),
            tick=self._tick(),
            restarts=restarts,
        )

    def _tick(self) -> Callable[[float], None]:
        told = [0.0]

        def tick(seconds: float) -> None:
            if seconds - told[0] >= _EVERY:
                told[0] = seconds
                self.say(f"it starts ({seconds:.0f} s)")

        return tick

    def _image(self, reference: str, found: Container) -> LocalImage:
        image = self.containers.image(reference)
        if image is None:
            raise SelectionError(
                f"{self.containers.engine.name} has no image {reference}",
                hint=how_to_get(reference, found.labels.get(TARGET_LABEL, "NAME")),
            )
        return image

    def _knows(self, name: str, digest: str) -> bool:
        record = self._record(name)
        return any(e is not None and e.digest == digest for e in (record.current, record.previous))

    def _record(self, name: str) -> Record:
        return self.ledger.read(self.containers.engine.name, name)


def raise_for(report: Report) -> None:
    """DeploymentError for an update that did not come to be."""
    if report.changed or not report.why:
        return
    tail = f"\nits last lines:\n{report.log}" if report.log else ""
    state = "the one before serves again" if report.serves else "and the one before does not serve either"
    raise DeploymentError(
        f"{report.name}: {report.wanted[:19]} does not serve: {report.why}; {state}{tail}",
        hint=None if report.serves else f"imgbuild run --name {report.name} --detach starts a new one",
    )


def pinned_name(reference: str, target: str, digest: str) -> str:
    """`comfyui:cpu` and sha256:c3e7c83f157e… → comfyui:cpu-c3e7c83f157e"""
    bare = reference.partition("@")[0]
    repository = re.sub(r":[^/:]*$", "", bare)
    return f"{repository}:{target}-{digest.partition(':')[2][:_SHORT]}"


def how_to_get(reference: str, target: str) -> str:
    if "/" in reference.removeprefix("localhost/"):
        return f"imgbuild pull {reference}"
    return f"imgbuild build --target {target}, or imgbuild pull --target {target}"
