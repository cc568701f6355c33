"""The image for this machine, out of a registry: look at all that could be, choose, fetch by digest, tag as build does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgbuild.choice import NONE, Candidate, candidate, choose
from imgbuild.errors import RegistryError, SelectionError, UnsoundError
from imgbuild.refusals import told
from imgbuild.registry import Repository
from imgbuild.remoteimage import look
from imgbuild.transport import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from imgbuild.choice import Choice, Verdict
    from imgbuild.engines.store import Chain, Store
    from imgbuild.hardware import Hardware
    from imgbuild.matrix import Target
    from imgbuild.reference import Reference
    from imgbuild.remoteimage import RemoteImage


UNPACKED = 3.4
"""Bytes in the engine for each that is fetched: the blob itself, and what it is unpacked to. Of the cpu image's 642 MB
2.16 GB are unpacked, of the h100's 2.97 GB 6.13 GB (bench/sizes.py)."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a registry has for a target."""

    target: str
    image: RemoteImage | None
    candidate: Candidate

    @property
    def size(self) -> int | None:
        return self.image.size if self.image else None


def offers(
    where: Reference,
    targets: Sequence[Target],
    *,
    env: Mapping[str, str],
    say: Callable[[str], None] | None = None,
    again: str | None = None,
) -> tuple[Offer, ...]:
    """Labels and sizes of `REGISTRY/PATH:<target>` of each target: some kilobytes each, no layer.

    RegistryError when the registry refuses, or does not answer; a target that it does not have is an offer too.
    """
    with (
        told(where.repository, host=where.host, again=again),
        Repository.of(where, env=env, say=say) as repository,
    ):
        return tuple(_offer(repository, where.tagged(target.name), target) for target in targets)


def _offer(repository: Repository, reference: Reference, target: Target) -> Offer:
    def nothing(why: str) -> Offer:
        capability = target.gpu.compute_capability if target.gpu else NONE
        own = Candidate(
            target=target.name,
            reference=str(reference),
            platform=target.platform,
            capability=capability,
            cuda=None,
            problem=why,
        )
        return Offer(target=target.name, image=None, candidate=own)

    if not repository.has_manifest(reference.name):
        return nothing("the registry has no such tag")
    try:
        image = look(repository, reference, target.platform)
    except SelectionError as e:  # an index without the platform
        return nothing(e.message.partition("; ")[2] or e.message)
    except UnsoundError as e:
        return nothing(f"it is damaged: {e}")
    own = candidate(target.name, str(reference), image.labels, platform=image.platform)
    return Offer(target=target.name, image=image, candidate=own)


def to_move(image: RemoteImage, here: frozenset[Chain]) -> int:
    """Bytes that an engine has to fetch: layers that do not lie there, on the same layers below them."""
    diffs = tuple(layer.diff_id for layer in image.layers)
    new = {layer.digest: layer.size for i, layer in enumerate(image.layers) if diffs[: i + 1] not in here}
    return sum(new.values())


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is pulled, and why."""

    offer: Offer
    choice: Choice
    asked: bool
    """Whether a target was named, and not chosen."""
    warning: str = ""


def decide(
    found: Sequence[Offer], hardware: Hardware, platform: str, *, asked: str | None, where: Reference
) -> Decision:
    """The image to pull: the one that was asked for, or the one that fits. SelectionError when there is none."""
    by_target = {offer.target: offer for offer in found}
    choice = choose([offer.candidate for offer in found], hardware, platform)
    if asked is not None:
        offer = by_target[asked]
        if offer.image is None:
            raise SelectionError(f"{where.tagged(asked)}: {offer.candidate.problem}", hint=_has(found, where))
        return Decision(offer=offer, choice=choice, asked=True, warning=_misfit(choice, asked))
    if choice.chosen is None:
        if all(offer.image is None for offer in found):
            raise SelectionError(
                f"{where.repository} has no image of any target: {', '.join(by_target)}",
                hint="see that registry and path are spelt as imgbuild publish had them",
            )
        raise SelectionError(choice.what, hint=_advice(choice, by_target.values(), hardware, where))
    return Decision(offer=by_target[choice.chosen.candidate.target], choice=choice, asked=False)


def _misfit(choice: Choice, asked: str) -> str:
    verdict = next(v for v in choice.verdicts if v.candidate.target == asked)
    if verdict.runs:
        return ""
    return f"{asked} does not run on this machine: {verdict.why}"


def _advice(choice: Choice, found: Iterable[Offer], hardware: Hardware, where: Reference) -> str:
    """Where the matrix has a target for the GPU and the registry no image of it, that is what to tell."""
    for offer in found:
        if offer.image is None and any(g.capability == offer.candidate.capability for g in hardware.gpus):
            return (
                f"target {offer.target} is made for it, and {where.repository} has no image of it: "
                f"imgbuild build --target {offer.target} makes one"
            )
    return choice.advice


def _has(found: Sequence[Offer], where: Reference) -> str:
    there = [offer.target for offer in found if offer.image is not None]
    return (
        f"{where.repository} has: {', '.join(there)}"
        if there
        else f"{where.repository} has none of the targets"
    )


@dataclass(frozen=True, kw_only=True)
class Pulled:
    reference: str
    """By digest."""
    name: str
    """The tag that it has here."""
    digest: str
    before: str | None
    """What the tag pointed to before; None when there was nothing, or the same."""


def fetch(engine_store: Store, image: RemoteImage, name: str, *, env: Mapping[str, str]) -> Pulled:
    """Pull by digest and tag. RegistryError when it cannot be fetched, and then no tag has moved."""
    engine = engine_store.engine
    old = engine.find(name)
    pinned = image.pinned
    plain = Connection(pinned.host, (), env=env).origin.startswith("http://")
    engine_store.pull(pinned, image.platform, plain=plain)
    if engine_store.view(str(pinned), ()) is None:
        raise RegistryError(
            f"{engine.name} says that it pulled {pinned}, and does not have it", hint="imgbuild doctor"
        )
    engine_store.tag(str(pinned), name)
    new = engine.find(name)
    moved = old is not None and new is not None and old.digest != new.digest
    return Pulled(
        reference=str(pinned),
        name=name,
        digest=new.digest if new else image.digest,
        before=old.digest if moved and old else None,
    )


def as_json(decision: Decision, found: Sequence[Offer], hardware: Hardware, moving: Mapping[str, int]) -> Any:
    """For programs: the machine, every candidate with its reason, what was chosen."""
    verdicts: dict[str, Verdict] = {v.candidate.target: v for v in decision.choice.verdicts}
    chosen = decision.offer
    assert chosen.image is not None
    return {
        "hardware": hardware.as_json(),
        "candidates": [
            {
                "target": o.target,
                "reference": o.candidate.reference,
                "runs": verdicts[o.target].runs,
                "fits": verdicts[o.target].fits,
                "why": verdicts[o.target].why,
                "digest": o.image.digest if o.image else None,
                "size": o.size,
                "to_move": moving.get(o.target),
            }
            for o in found
        ],
        "chosen": chosen.target,
        "asked": decision.asked,
        "reference": str(chosen.image.pinned),
        "warning": decision.warning or None,
    }
