"""Several files of lists into the folder of the models: looked at, asked for, measured against the disk, fetched."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from comfywork.errors import ComfyworkError, ConfigError
from comfywork.models import crew, folder, part, record, wire
from comfywork.models.download import Got, Meter, Want, fetch
from comfywork.models.errors import PlaceError, StoppedError, UnreachableError, WrongFileError
from comfywork.models.folder import Kind
from comfywork.models.hub import LARGEST, Hub
from comfywork.models.outcome import Done, Outcome
from comfywork.models.selection import unique
from comfywork.models.wire import Patience, Told, TransientError
from comfywork.quantities import human

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import httpx

    from comfywork.models.modellist import Model, ModelFile

T = TypeVar("T")
R = TypeVar("R")


class Board(Protocol):
    """Where progress is shown. Called from several threads."""

    def meter(self, path: str, size: int | None) -> Meter: ...
    def done(self, path: str, outcome: Done) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(kw_only=True)
class Pull:
    """A pull's settings."""

    models: Path
    hub: Hub
    board: Board
    unlocked: bool = False
    replace: bool = False
    wait: bool = False
    parallel: int = 4
    patience: Patience = field(default_factory=Patience)
    stop: threading.Event = field(default_factory=threading.Event)
    _records: dict[str, record.Entry] = field(default_factory=dict, init=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False)

    def run(self, models: Iterable[Model]) -> list[Outcome]:
        """One outcome a file. Raises what concerns all of them: the list, the folder, the room, another pull."""
        files = unique(models)
        self._allowed(files)
        folder.make(self.models)
        with (
            folder.locked(self.models, wait=self.wait, stop=self.stop, said=self.board.say),
            wire.client(parallel=self.parallel) as http,
        ):
            self._records = record.read(self.models)
            looked = self._each(files, lambda file: self._guarded(file, lambda: self._look(http, file)))
            plans = [found for found in looked if isinstance(found, _Plan)]
            folder.check_room(self.models, {plan.file.path: plan.to_come for plan in plans})
            fetched = self._each(plans, lambda p: self._guarded(p.file, lambda: self._fetch(http, p)))
        outcomes = {found.path: found for found in (*looked, *fetched) if isinstance(found, Outcome)}
        return [outcomes.get(file.path) or _left_behind(file) for file in files]

    def _each(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        return crew.each(items, work, parallel=self.parallel, stop=self.stop)

    def _allowed(self, files: list[ModelFile]) -> None:
        open_ones = [file for file in files if not file.locked]
        if open_ones and not self.unlocked:
            shown = [f"  {file.path}: no {', no '.join(_lock_words(file))}" for file in open_ones[:5]]
            more = [f"  … and {len(open_ones) - 5} more"] if len(open_ones) > 5 else []  # noqa: PLR2004
            raise ConfigError(
                f"{len(open_ones)} of {len(files)} files are not locked: nothing says what the right bytes are",
                *shown,
                *more,
                hint="lock the list (comfyrun models lock FILE; a shipped one with --output FILE), "
                "or take what the server has today: --unlocked",
            )

    def _guarded(self, file: ModelFile, work: Callable[[], R | Outcome]) -> R | Outcome:
        """A failure of one file is its outcome, and the others go on."""
        try:
            if self.stop.is_set():
                raise StoppedError("stopped before it was begun")
            found = work()
        except (ComfyworkError, OSError) as problem:
            error = _told(problem)
            kept = part.size_of(self.models / file.path)
            stopped = isinstance(error, StoppedError)
            found = Outcome(
                path=file.path,
                source=file.source,
                outcome="stopped" if stopped else "refused" if error.exit_code in (1, 77) else "failed",
                message=f"{error}; {human(kept)} are kept" if stopped else str(error),
                hint=error.hint,
                exit_code=error.exit_code,
            )
        if isinstance(found, Outcome):
            self.board.done(file.path, found.outcome)
        return found

    def _look(self, http: httpx.Client, file: ModelFile) -> _Plan | Outcome:
        """What is here, then what the server says: a licence not accepted shows before anything is fetched."""
        here = folder.look(self.models, file, self._records.get(file.path))
        if here.kind is Kind.RIGHT and file.locked:
            return self._kept(file, here.size, "already right", "as recorded by an earlier pull")
        if here.kind is Kind.PRESENT and file.sha256:
            proven = self._prove(file, file.sha256, "the list")
            if isinstance(proven, Outcome):
                return proven
            here = proven
        if here.wrong and not self.replace:
            raise WrongFileError(
                f"{file.path} is here and wrong: {here.detail}", hint="replace it: --replace"
            )
        told = self._ask(http, file)
        size, sha256 = file.size or told.size, file.sha256 or told.sha256
        if not file.locked and here.kind in (Kind.PRESENT, Kind.RIGHT):
            settled = self._unlocked_here(file, here, told)
            if settled is not None:
                return settled
        if file.repository and size is not None and size > LARGEST:
            raise WrongFileError(
                f"{file.path} has {human(size)}: the hub sends files above {human(LARGEST)} only by its Xet protocol",
                hint=f"fetch it with: hf download {file.repository} {file.file} --local-dir DIR; move it to "
                f"{self.models / file.path}; then: comfyrun models verify",
            )
        kept = part.size_of(self.models / file.path)
        expected = size if size is not None else file.estimate or 0
        return _Plan(
            file=file,
            told=told,
            size=size,
            sha256=sha256,
            to_come=max(0, expected - kept),
            replaces=(self.models / file.path).exists(),
        )

    def _ask(self, http: httpx.Client, file: ModelFile) -> Told:
        failures = 0
        while True:
            try:
                if file.repository:
                    return self._same(file, self.hub.ask(file))
                if file.locked:
                    return Told()
                with wire.request(http, "HEAD", file.url or "", {}, None) as (_, told):
                    return told
            except TransientError as error:
                failures += 1
                if failures > self.patience.failures:
                    raise UnreachableError(f"{error} ({failures} times)") from error
                pause = self.patience.pause(failures, error.after)
                self.board.say(f"{file.path}: {error}; again in {pause:.1f} s")
                if self.stop.wait(pause):
                    raise StoppedError("stopped") from None

    def _same(self, file: ModelFile, told: Told) -> Told:
        if file.sha256 and told.sha256 and told.sha256 != file.sha256:
            raise WrongFileError(f"changed at the hub: sha256 {told.sha256}, the list says {file.sha256}")
        if file.size and told.size and told.size != file.size:
            raise WrongFileError(f"changed at the hub: {told.size:,} bytes, the list says {file.size:,}")
        return told

    def _prove(self, file: ModelFile, expected: str, evidence: str) -> folder.Found | Outcome:
        """Read what is here; an Outcome when it is right, else what is wrong with it."""
        meter = self.board.meter(file.path, (self.models / file.path).stat().st_size)

        def read(count: int) -> None:
            meter.hashed(count)
            if self.stop.is_set():
                raise StoppedError("stopped")

        found = folder.sha256(self.models / file.path, read)
        size = (self.models / file.path).stat().st_size
        if found == expected:
            self._remember(file, found, evidence, None)
            return self._kept(file, size, "already right", "read again")
        return folder.Found(
            kind=Kind.WRONG_HASH, size=size, detail=f"sha256 {found}, {evidence} says {expected}"
        )

    def _unlocked_here(self, file: ModelFile, here: folder.Found, told: Told) -> Outcome | None:
        """A file that no list has locked, against what the server says today; None when it is to be replaced."""
        detail = ""
        if told.size is not None and told.size != here.size:
            detail = f"{here.size:,} bytes, the server's has {told.size:,}"
        elif told.sha256:
            proven = self._prove(file, told.sha256, "the hub")
            if isinstance(proven, Outcome):
                return proven
            detail = proven.detail
        else:
            return self._kept(
                file, here.size, "left alone", "nobody states its hash; it is of the server's size"
            )
        if not self.replace:
            raise WrongFileError(
                f"{file.path} is here and not what the server has: {detail}", hint="replace it: --replace"
            )
        return None

    def _kept(self, file: ModelFile, size: int, outcome: Done, message: str) -> Outcome:
        part.sweep(self.models / file.path)
        entry = self._records.get(file.path)
        return Outcome(
            path=file.path,
            source=file.source,
            outcome=outcome,
            size=size,
            sha256=file.sha256 or (entry.sha256 if entry else None),
            evidence="the list" if file.sha256 else entry.evidence if entry else "nobody",
            message=message,
        )

    def _fetch(self, http: httpx.Client, plan: _Plan) -> Outcome:
        file = plan.file
        revision = plan.told.revision if file.repository else None
        meter = self.board.meter(file.path, plan.size)
        want = Want(
            label=file.path,
            target=self.models / file.path,
            # By the commit that was asked about: the branch may move while it is fetched.
            url=self.hub.url(file, revision) if file.repository else file.url or "",
            source=file.source,
            size=plan.size,
            sha256=plan.sha256,
            token=self.hub.token if file.repository else None,
        )
        got = fetch(http, want, meter, self.stop, self.patience)
        evidence = "the list" if file.sha256 else "the hub" if plan.sha256 else "nobody"
        self._remember(file, got.sha256, evidence, revision)
        return _fetched(file, plan, got, evidence, revision)

    def _remember(self, file: ModelFile, sha256: str, evidence: str, revision: str | None) -> None:
        status = (self.models / file.path).stat()
        entry = record.Entry(
            source=file.source,
            size=status.st_size,
            sha256=sha256,
            mtime_ns=status.st_mtime_ns,
            evidence=evidence,
            revision=revision,
        )
        with self._guard:
            self._records[file.path] = entry
            record.write(self.models, self._records)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    file: ModelFile
    told: Told
    size: int | None
    sha256: str | None
    to_come: int
    """Bytes, estimated where nobody states them."""
    replaces: bool

    @property
    def path(self) -> str:
        return self.file.path


def _told(problem: ComfyworkError | OSError) -> ComfyworkError:
    if isinstance(problem, ComfyworkError):
        return problem
    return PlaceError(f"{problem.filename or 'the folder of the models'}: {problem.strerror or problem}")


def _fetched(file: ModelFile, plan: _Plan, got: Got, evidence: str, revision: str | None) -> Outcome:
    return Outcome(
        path=file.path,
        source=file.source,
        outcome="replaced" if plan.replaces else "fetched",
        size=got.size,
        sha256=got.sha256,
        evidence=evidence,
        revision=revision,
        taken_up=got.taken_up,
        failures=got.failures,
        seconds=round(got.seconds, 3),
    )


def _left_behind(file: ModelFile) -> Outcome:
    return Outcome(path=file.path, source=file.source, outcome="stopped", message="stopped", exit_code=130)


def _lock_words(file: ModelFile) -> list[str]:
    return ["commit" if word == "revision" else word for word in file.lacks]
