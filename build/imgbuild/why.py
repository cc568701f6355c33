"""What differs from the last build of a target, part by part, and what that costs in minutes and bytes."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgbuild import bases, estimate, history
from imgbuild.build import stage
from imgbuild.parts import KERNEL, LAYER, parts, runs_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.build import Builder, Options
    from imgbuild.history import Record
    from imgbuild.kernels import KernelPlan
    from imgbuild.matrix import Target
    from imgbuild.parts import Parts
    from imgbuild.plan import Plan
    from imgbuild.wheelhouse import Entry

State = Literal["same", "changed", "new", "gone", "runs again"]
"""`runs again`: nothing of its own differs, but it is made from a part that does; the bytes stay what they were."""

# Seconds of a whole build, and bytes of its push, when nothing else changed: bench/results/rebuild-cpu.md.
_SMALL = {"comfyui": (3, 9_100_000), "nodes": (2, 1_000), "comfyrun": (2, 67_000), "profile": (2, 3_000)}
_BASE_BYTES = 150_000_000  # bench/results/sizes-cpu-h100.md: 128.3 and 148.5 MB
_INSTALL_SECONDS = 3  # of a kernel's wheel
_ALL_OF_IT = {"recipe", "profile.json"}
"""Components that change with others; they say something only where no other does."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    component: str
    old: str | None
    """None: there was no such component."""
    new: str | None
    """None: there is none any more."""

    def text(self) -> str:
        """`torch 2.12.0 → 2.13.0`: only those words that differ, and no hash where a word says it."""
        old, new = (self.old or "").split(), (self.new or "").split()
        one, other = [w for w in old if w not in new], [w for w in new if w not in old]
        if old and new and not one and not other:
            return f"{self.component}: another order"
        return f"{self.component} {_few(one)} → {_few(other)}"


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    state: State
    differences: tuple[Difference, ...] = ()
    compiles: bool = False
    """A kernel whose key is not in the wheelhouse."""
    compile_seconds: float | None = 0
    """As it was measured for a kernel of this name; None when nobody has compiled one here."""
    stage_seconds: float = 0
    """Of everything but compiling."""
    measured: bool = False
    """`stage_seconds` out of the history, and not estimated."""
    bytes: int = 0
    """About what a push moves; estimated, and for a part that only runs again nothing."""
    note: str = ""

    @property
    def differs(self) -> bool:
        return self.state in ("changed", "new", "gone")

    def shown(self) -> tuple[Difference, ...]:
        """Without those that say nothing more."""
        more = {d.component for d in self.differences} - _ALL_OF_IT - {"key"}
        return tuple(d for d in self.differences if not more or d.component not in _ALL_OF_IT)


@dataclass(frozen=True, kw_only=True)
class Why:
    target: str
    plan: str
    last: Record | None
    parts: tuple[Part, ...]

    @property
    def differing(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if p.differs)

    @property
    def compile_seconds(self) -> float:
        """Of the kernels for which it is known."""
        return sum(p.compile_seconds or 0 for p in self.parts)

    @property
    def stage_seconds(self) -> float:
        return sum(p.stage_seconds for p in self.parts)

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.parts)

    def sentence(self) -> str:
        if self.last is None:
            return f"no build of {self.target} is recorded on this machine; a cold one takes {self._cost()}"
        names = ", ".join(p.name for p in self.differing)
        if not names and not any(p.compiles for p in self.parts):
            return f"all {len(self.parts)} parts are those of the last build: nothing to compile, nothing to push"
        count = len(self.differing)
        says = f"{count} of {len(self.parts)} parts differ{'s' if count == 1 else ''}"
        return f"{says}{': ' if names else ''}{names}; {self._cost()}"

    def _cost(self) -> str:
        unknown = [p.name for p in self.parts if p.compile_seconds is None]
        words = []
        if self.compile_seconds:
            words.append(f"about {_time(self.compile_seconds)} of compiling")
        if unknown:
            words.append(f"compiling {' and '.join(unknown)} (never measured here)")
        if not any(p.compiles for p in self.parts):
            words.append("nothing to compile")
        running = [p for p in self.parts if p.stage_seconds]
        if running:
            how = {True: "measured", False: "estimated"}
            kinds = " and ".join(how[m] for m in sorted({p.measured for p in running}, reverse=True))
            words.append(f"about {_time(self.stage_seconds)} of everything else ({kinds})")
        words.append(f"{_size(self.bytes)} to push" if self.bytes else "nothing to push")
        return ", ".join(words)

    def as_json(self) -> dict[str, Any]:
        last = self.last
        return {
            "target": self.target,
            "plan": self.plan,
            "last": last.model_dump(include=set(_OF_LAST)) if last else None,
            "parts": [dataclasses.asdict(p) for p in self.parts],
            "differ": len(self.differing),
            "compile_seconds": round(self.compile_seconds, 1),
            "stage_seconds": round(self.stage_seconds, 1),
            "bytes": self.bytes,
            "sentence": self.sentence(),
        }


_OF_LAST = ("when", "plan", "tag", "digest", "state", "engine", "base", "seconds")


def look(builder: Builder, target: Target, options: Options) -> Why:
    """Compare what a build would make now with what the last one made; starts no engine and compiles nothing."""
    source, tree = builder.source(options)
    (plan,) = builder.plans([target], source, options)
    with tempfile.TemporaryDirectory(prefix="imgbuild-") as work:
        staged = Path(work) / "comfyui-src"
        if tree is not None and source.kind == "local":
            stage(tree, staged)
        now = parts(builder.project, plan, comfyui=staged)
    return compare(
        plan,
        now,
        history.last(builder.cache, plan.name),
        builder.wheelhouse.entries(),
        host_platform=f"linux/{bases.host_arch()}",
    )


def compare(
    plan: Plan, now: Parts, last: Record | None, entries: Sequence[Entry], *, host_platform: str
) -> Why:
    before = dict(last.components) if last else {}
    if last is not None and last.base == "bootstrap" and "base" in before:
        # A bootstrapped base is not that image: it stays when the pinned digest moves.
        pin = {k: v for k, v in now["base"].items() if k in ("image", "digest")}
        before["base"] = {**before["base"], **pin}
    found = {name: differing(before.get(name, {}), components) for name, components in now.items()}
    changed = {name for name, differences in found.items() if name not in before or differences}
    costs = _Costs(plan=plan, last=last, entries=entries, host_platform=host_platform)
    made = []
    for name, differences in found.items():
        state: State = "same"
        if name in changed:
            state = "changed" if name in before else "new"
        elif changed & set(runs_on(name)):
            state = "runs again"
        cost = costs.of(name, state)
        made.append(Part(name=name, state=state, differences=differences if name in before else (), **cost))
    made += [Part(name=name, state="gone") for name in before if name not in now]
    return Why(target=plan.name, plan=plan.key, last=last, parts=tuple(made))


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Difference, ...]:
    """Between the components of a part."""
    names = dict.fromkeys((*new, *old))
    return tuple(
        Difference(component=n, old=old.get(n), new=new.get(n)) for n in names if old.get(n) != new.get(n)
    )


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """What a part costs, by what was recorded of it, else by what it should take."""

    plan: Plan
    last: Record | None
    entries: Sequence[Entry]
    host_platform: str

    def of(self, part: str, state: State) -> dict[str, Any]:
        kernel = next((k for k in self.plan.kernels if f"{KERNEL}{k.name}" == part), None)
        found: dict[str, Any] = {}
        if kernel is not None and kernel.compiled:
            found = self._compile(part, state, kernel)
        if state == "same":
            return found
        measured = self.last.stages.get(part) if self.last else None
        found["stage_seconds"] = self._seconds(part) if measured is None else measured
        found["measured"] = measured is not None
        if state != "runs again":
            found["bytes"] = self._bytes(part, kernel)
        return found

    def _compile(self, part: str, state: State, kernel: KernelPlan) -> dict[str, Any]:
        entry = self._entry(kernel)
        if entry is not None and entry.key == kernel.key:
            return {} if state == "same" else {"note": "in the wheelhouse already"}
        seconds = self.last.compiled.get(part) if self.last else None
        if seconds is None and entry is not None:
            seconds = entry.seconds
        note = "the wheelhouse has it no more" if state == "same" else ""
        return {"compiles": True, "compile_seconds": seconds, "note": note}

    def _entry(self, kernel: KernelPlan) -> Entry | None:
        """The kernel's own wheel, else the last one's, else the one that is most like it."""
        old = self.last.components.get(f"{KERNEL}{kernel.name}", {}).get("key") if self.last else None
        mine = [e for e in self.entries if e.kernel == kernel.name]
        return max(
            mine,
            key=lambda e: (e.key == kernel.key, e.key == old, e.platform == self.plan.platform, e.made),
            default=None,
        )

    def _bytes(self, part: str, kernel: KernelPlan | None) -> int:
        if kernel is not None:
            entry = self._entry(kernel)
            known = self.last.bytes.get(part, 0) if self.last else 0
            pinned = sum(w.size for w in kernel.wheels)
            return pinned if not kernel.compiled else entry.size if entry else known
        sizes = {f"{LAYER}{layer.name}": layer.size for layer in self.plan.layers}
        small = {name: size for name, (_, size) in _SMALL.items()}
        return {**sizes, **small, "base": _BASE_BYTES}.get(part, 0)

    def _seconds(self, part: str) -> float:
        """By the estimate of a cold build, of which a part takes its share."""
        bare = dataclasses.replace(self.plan, layers=())
        beside = self._estimate(bare)
        if part == "base":
            return beside
        for layer in self.plan.layers:
            if part == f"{LAYER}{layer.name}":
                return self._estimate(dataclasses.replace(bare, layers=(layer,))) - beside
        return _SMALL[part][0] if part in _SMALL else _INSTALL_SECONDS if part.startswith(KERNEL) else 0

    def _estimate(self, plan: Plan) -> float:
        return estimate.disk([plan], host_platform=self.host_platform).seconds


_HEX = re.compile(r"(?:[a-z0-9]+:)?([0-9a-f]{8})[0-9a-f]{4,}")
_LONGEST = 44


def _few(words: Sequence[str]) -> str:
    """Words cut to what tells them apart; a hash behind other words says no more than they do."""
    if not words:
        return "–"
    plain = [w for w in words if not _HEX.fullmatch(w)]
    text = " ".join(plain) or " ".join(_HEX.sub(r"\1", w) for w in words)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"  # noqa: PLR2004


def _size(size: int) -> str:
    if size >= 1e9:  # noqa: PLR2004
        return estimate.gigabytes(size)
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"  # noqa: PLR2004
