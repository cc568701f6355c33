"""comfyrun nodes install · list · remove · sync: custom nodes, and their packages, on the data volume.

Nothing in the image changes. Without /data/python/… every package is the image's again; without its folder in
/data/custom_nodes a node is gone; COMFY_NODES=off leaves both aside for a start.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from comfyrun import nodesources, overlay, packages, paths, redact
from comfyrun.errors import ComfyrunError, ConfigError, MachineError, nearest
from comfyrun.overlay import Place, node_record
from comfyrun.packages import Installer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from comfyrun.overlay import Package
    from comfyrun.packages import Requirements

SCHEMA = 1

USAGE = """\
usage: comfyrun nodes install SOURCE [--name NAME] [--sha256 HASH]
       comfyrun nodes list [--json]
       comfyrun nodes remove NAME ...
       comfyrun nodes sync             packages for every node that is there: after a change by hand, in a new image

SOURCE is a folder, an archive (.zip, .tar.gz; from a network with --sha256), or URL@COMMIT of a git repository.
A folder that lies in custom_nodes already stays where it is, and its packages are installed.
"""


@dataclass(frozen=True, kw_only=True)
class Node:
    name: str
    kind: str
    """baked, installed, kept (in place, its packages are ours), foreign (put there by hand) or off."""
    source: str = ""
    when: str = ""


def main(arguments: Sequence[str], place: Place, say: Callable[[str], None]) -> int:
    if not arguments or arguments[0] in ("--help", "-h"):
        print(USAGE, end="")
        return 0 if arguments else ConfigError.exit_code
    verb, *rest = arguments
    match verb:
        case "install":
            _install(_source(rest), place, say)
        case "list":
            if rest not in ([], ["--json"]):
                _usage(f"nodes list knows only --json, not {rest[0]}")
            print(as_json(place) if rest else as_text(place))
        case "remove":
            if not rest or any(name.startswith("-") for name in rest):
                _usage("nodes remove needs the names of nodes (comfyrun nodes list)")
            _remove(rest, place, say)
        case "sync":
            if rest:
                _usage("nodes sync knows no arguments")
            _sync(place, say)
        case _:
            _usage(
                f"comfyrun nodes has no command {verb!r}{nearest(verb, ('install', 'list', 'remove', 'sync'))}"
            )
    return 0


def _usage(message: str) -> NoReturn:
    raise ConfigError(f"{message}; comfyrun nodes --help")


def _source(arguments: list[str]) -> nodesources.Source:
    given: dict[str, str] = {}
    places: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--name", "--sha256"):
            found = value if equals else next(rest, None)
            if not found:
                _usage(f"{name} needs a value")
            given[name] = found
        elif word.startswith("-"):
            _usage(f"nodes install knows --name and --sha256, not {name}")
        else:
            places.append(word)
    if len(places) != 1:
        _usage("nodes install needs one source: a folder, an archive, or URL@COMMIT")
    return nodesources.parse(places[0], name=given.get("--name"), sha256=given.get("--sha256"))


# --- install -----------------------------------------------------------------------------------


def _install(source: nodesources.Source, place: Place, say: Callable[[str], None]) -> None:
    path = place.nodes / source.name
    if source.name in place.baked:
        raise ConfigError(f"{source.name} is a node of the image already; --name gives this one another name")
    here = source.kind == "folder" and Path(source.place).parent == _resolved(place.nodes)
    if here:
        path = Path(source.place)
    elif os.path.lexists(path) and (node_record(path) or {"in_place": True}).get("in_place"):
        raise ConfigError(
            f"{path} is there, and was not put there by comfyrun: nothing was changed. Install it where it is "
            f"(comfyrun nodes install {path}), or give this one another name with --name"
        )
    with _at_work(place) as work:
        if here:
            folder = path
            if not paths.is_file(folder / "__init__.py"):
                raise ConfigError(f"{folder} is no custom node: there is no __init__.py at its top")
        else:
            fetched = nodesources.fetch(source, _made(work / "fetched"), say)
            folder = fetched.folder
            for note in fetched.notes:
                say(note)
        wanted = _wanted(place, work, without=path.name)
        own = packages.read_requirements(path.name, folder, _made(work / "requirements"))
        changed = _Packages.build(place, [*wanted, own] if own else wanted, work, say)
        _note_down(
            folder,
            source=source.text,
            in_place=here,
            commit=source.commit,
            sha256=None if here else fetched.sha256,
        )
        if not here:
            _swap(folder, path, work / "old-node")
        changed.commit()
    say(f"{path.name} is installed in {path}; a running ComfyUI finds it at its next start")
    if paths.exists(path / "install.py"):
        say(f"{path.name} has an install.py, which comfyrun does not run: look whether it is needed")


def _sync(place: Place, say: Callable[[str], None]) -> None:
    """Also for nodes that were put there by hand: they stay what and where they are."""
    new = [
        path
        for path in place.folders()
        if node_record(path) is None
        and not path.name.endswith(".disabled")
        and paths.is_file(path / "__init__.py")
    ]
    with _at_work(place) as work:
        changed = _Packages.build(place, _wanted(place, work, also=new), work, say)
        for path in new:
            _note_down(path, source=str(path), in_place=True)
        changed.commit()
    for path in new:
        say(f"{path.name}, which was put there by hand, has its packages")


def _note_down(
    folder: Path, *, source: str, in_place: bool, commit: str | None = None, sha256: str | None = None
) -> None:
    record = {
        "schema": SCHEMA,
        "source": source,
        "commit": commit,
        "sha256": sha256,
        "in_place": in_place,
        "installed": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    with _explained(folder):
        (folder / overlay.RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _wanted(place: Place, work: Path, *, without: str = "", also: Sequence[Path] = ()) -> list[Requirements]:
    """What the nodes require that comfyrun looks after."""
    texts = _made(work / "requirements")
    found = [
        packages.read_requirements(path.name, path, texts)
        for path in place.folders()
        if path.name != without and (path in also or node_record(path) is not None)
    ]
    return [r for r in found if r is not None]


@dataclass(frozen=True, kw_only=True)
class _Packages:
    """An overlay that is ready beside the one in use; None where that one stays."""

    place: Place
    work: Path
    ready: Path | None
    say: Callable[[str], None]

    @classmethod
    def build(
        cls, place: Place, wanted: Sequence[Requirements], work: Path, say: Callable[[str], None]
    ) -> _Packages:
        record: dict[str, object] = {
            "schema": SCHEMA,
            "requirements": {r.node: list(r.lines) for r in wanted},
            "image": overlay.baked(place.layout),
        }
        there = place.record()
        if {key: there.get(key) for key in record} == record or (
            not wanted and not paths.exists(place.overlay)
        ):
            return cls(place=place, work=work, ready=None, say=say)
        ready = _made(work / "overlay")
        found: list[Package] = []
        if wanted:
            installer = Installer(
                layout=place.layout,
                environ=place.environ,
                cache=place.cache,
                work=_made(work / "pip"),
                show=lambda line: say(f"pip: {line}"),
            )
            found = installer.install(wanted, ready / "site-packages")
        record["packages"] = {p.name: p.version for p in found}
        with _explained(ready):
            (ready / "overlay.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return cls(place=place, work=work, ready=ready, say=say)

    def commit(self) -> None:
        if self.ready is None:
            return
        count = len(overlay.installed(self.ready / "site-packages"))
        with _explained(self.place.overlay):
            if paths.exists(self.ready / "site-packages"):
                _swap(self.ready, self.place.overlay, self.work / "old-overlay")
            elif paths.exists(self.place.overlay):
                self.place.overlay.rename(self.work / "old-overlay")
        some = "1 package" if count == 1 else f"{count} packages"
        self.say(f"{some} beside those of the image, in {self.place.overlay}")


# --- list --------------------------------------------------------------------------------------


def listed(place: Place) -> list[Node]:
    found = [Node(name=name, kind="baked") for name in place.baked]
    for path in place.folders():
        record = node_record(path)
        if path.name.endswith(".disabled"):
            found.append(Node(name=path.name, kind="off"))
        elif record is None:
            found.append(Node(name=path.name, kind="foreign"))
        else:
            kind = "kept" if record.get("in_place") else "installed"
            source, commit = str(record.get("source", "")), record.get("commit")
            if isinstance(commit, str) and commit not in source:
                source = f"{source}@{commit}"
            found.append(
                Node(name=path.name, kind=kind, source=source, when=str(record.get("installed", "")))
            )
    return found


def as_text(place: Place) -> str:
    words = {
        "baked": "in the image",
        "foreign": "put there by hand; `comfyrun nodes install` of its folder installs its packages",
        "off": "switched off by its name",
    }
    rows = [(node.name, words.get(node.kind) or f"{node.source}, {node.when}") for node in listed(place)]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name:<{width}}  {what}" for name, what in rows] or ["no custom nodes"]
    found = overlay.installed(place.site)
    names = ", ".join(f"{p.name} {p.version}" for p in found)
    lines.append(
        f"packages in {place.overlay}: {names}" if found else "no packages beside those of the image"
    )
    text = overlay.note(place)
    return "\n".join([*lines, text] if text else lines)


def as_json(place: Place) -> str:
    return json.dumps(
        {
            "schema": SCHEMA,
            "nodes": [
                {"name": n.name, "kind": n.kind, "source": n.source or None, "installed": n.when or None}
                for n in listed(place)
            ],
            "overlay": str(place.overlay),
            "packages": {p.name: p.version for p in overlay.installed(place.site)},
            "note": overlay.note(place) or None,
        },
        indent=2,
    )


# --- remove ------------------------------------------------------------------------------------


def _remove(names: Sequence[str], place: Place, say: Callable[[str], None]) -> None:
    known = {node.name: node for node in listed(place)}
    mistakes = []
    for name in names:
        if name not in known:
            mistakes.append(f"there is no node {name!r}{nearest(name, known)}: comfyrun nodes list")
        elif known[name].kind == "baked":
            mistakes.append(f"{name} is part of the image and stays")
        elif known[name].kind in ("foreign", "off"):
            mistakes.append(f"{name} was not put there by comfyrun: delete {place.nodes / name} yourself")
    if mistakes:
        raise ConfigError(*mistakes)
    with _at_work(place) as work:
        for name in dict.fromkeys(names):
            path = place.nodes / name
            with _explained(path):
                if known[name].kind == "kept":
                    # It was there before comfyrun was asked to look after it.
                    (path / overlay.RECORD).unlink()
                    off = path.with_name(f"{name}.disabled")
                    path.rename(off)
                    say(f"{name} was yours, so it is only switched off: {off}")
                else:
                    path.rename(work / f"old-{name}")
                    say(f"{name} is removed")
        wanted = _wanted(place, work)
        try:
            _Packages.build(place, wanted, work, say).commit()
        except ComfyrunError as error:
            # Without a network a node can go all the same; what only it needed does no harm.
            say(f"its packages are still there, for now: {error}")


# --- on the disk -------------------------------------------------------------------------------


@contextlib.contextmanager
def _at_work(place: Place) -> Iterator[Path]:
    """A folder on the data volume for what is not ready yet; one comfyrun at a time."""
    root = Path(place.data, "python")
    with _explained(root):
        root.mkdir(parents=True, exist_ok=True)
        place.nodes.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=root))
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            work.rmdir()
            raise MachineError(f"another `comfyrun nodes` is at work on {place.data}: wait for it") from None
        for left in root.glob(".work-*"):  # of one that was killed
            if left != work:
                shutil.rmtree(left, ignore_errors=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _made(path: Path) -> Path:
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _swap(new: Path, path: Path, old: Path) -> None:
    """`new` takes the place of `path`, which goes to `old`."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            path.rename(old)
        new.rename(path)


def _resolved(path: Path) -> Path:
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve()
    return path


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = redact.of().text(str(error.filename or path))
        raise MachineError(
            f"{place}: {error.strerror or error}; comfyrun runs as UID {os.getuid()}, which must be able to write there"
        ) from None
