"""The base of an image: the registry's Debian by digest, or the same suite bootstrapped from the package mirror.

A bootstrapped base is one OCI layout under the cache folder that holds every
platform asked for so far; it is kept until `--refresh-base` looks for Debian's fixes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.errors import ConfigError, DiskError, EngineError, NetworkError
from imgbuild.locking import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from imgbuild.plan import BasePlan

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's spelling → OCI's."""
_FORMAT = 1
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_BOOTSTRAP_TIMEOUT = 3600.0
_REGISTRY_TIMEOUT = 20.0


@dataclass(frozen=True, kw_only=True)
class LocalBase:
    """A bootstrapped base: a tar an architecture, and an OCI layout over all of them."""

    folder: Path
    digest: str
    """Of the layout's index; empty when only tars were asked for so far."""
    platforms: Mapping[str, Any]
    """By architecture: what is known of how it was made."""

    @property
    def context(self) -> str:
        """In a bake file's spelling."""
        return f"oci-layout://{self.folder / 'layout'}@{self.digest}"

    def tar(self, arch: str) -> Path:
        return self.folder / f"{arch}.tar"


def base_key(base: BasePlan, setup: str) -> str:
    """What shapes a bootstrapped base, but for the archive's state, which is recorded beside it."""
    shape = {
        "format": _FORMAT,
        "suite": base.suite,
        "packages": base.packages,
        "exclude": base.exclude,
        "setup": setup,
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]


def registry_has(base: BasePlan, env: Mapping[str, str]) -> bool:
    """Whether the engine's client can read the pinned base from its registry."""
    argv = ["docker", "buildx", "imagetools", "inspect", f"{base.image}@{base.digest}"]
    return proc.run(argv, env=env, check=False, timeout=_REGISTRY_TIMEOUT).returncode == 0


def host_arch() -> str:
    """This machine's architecture in OCI's spelling."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def find_base(cache: Path, base: BasePlan, setup: str) -> LocalBase | None:
    folder = cache / "bases" / f"{base.name}-{base_key(base, setup)}"
    try:
        state: Any = json.loads((folder / "state.json").read_text())
        platforms = {arch: dict(known) for arch, known in state["platforms"].items() if "packages" in known}
        return LocalBase(folder=folder, digest=str(state["digest"]), platforms=platforms)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is made anew


def bootstrap(
    base: BasePlan,
    setup: str,
    archs: Iterable[str],
    *,
    epoch: int,
    cache: Path,
    env: Mapping[str, str],
    refresh: bool,
    layout: bool,
    say: Callable[[str], None],
) -> LocalBase:
    """The bootstrapped base with at least these architectures; only what is missing is made.

    `layout`: as an OCI layout too, which needs buildx; without, only the tars.
    """
    folder = cache / "bases" / f"{base.name}-{base_key(base, setup)}"
    folder.mkdir(parents=True, exist_ok=True)
    found = find_base(cache, base, setup)
    platforms: dict[str, Any] = dict(found.platforms) if found else {}
    for arch in sorted(set(archs)):
        if refresh or arch not in platforms:
            emulated = arch != host_arch()
            say(
                f"bootstrapping Debian {base.suite} for {arch}"
                + (" under emulation: some minutes, once" if emulated else ": about half a minute, once")
            )
            platforms[arch] = _bootstrap_one(base, setup, arch, epoch=epoch, folder=folder, env=env)
        if layout and "manifest" not in platforms[arch]:
            platforms[arch] |= {"manifest": _export(folder, arch=arch, epoch=epoch, env=env)}
    digest = _write_index(folder / "layout", platforms) if layout else (found.digest if found else "")
    write_atomically(
        folder / "state.json", json.dumps({"digest": digest, "platforms": platforms}, indent=2) + "\n"
    )
    return LocalBase(folder=folder, digest=digest, platforms=platforms)


def _bootstrap_one(
    base: BasePlan, setup: str, arch: str, *, epoch: int, folder: Path, env: Mapping[str, str]
) -> dict[str, Any]:
    if proc.which("mmdebstrap", env=env) is None:
        raise EngineError(
            "no registry can be reached for the base image, and mmdebstrap is not installed",
            hint="imgbuild doctor --fix",
        )
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        script, part, release = (Path(work) / name for name in ("base-setup.sh", "base.tar", "release"))
        script.write_text(setup)
        argv: list[str | Path] = ["mmdebstrap", f"--arch={arch}", "--variant=minbase"]
        argv += [f"--include={','.join(base.packages)}"]
        argv += [f"--dpkgopt=path-exclude={path}" for path in base.exclude]
        argv += [
            f'--customize-hook=cat "$1"/var/lib/apt/lists/*_InRelease | sha256sum | cut -d" " -f1 > {shlex.quote(str(release))}'
        ]
        argv += [f'--customize-hook=chroot "$1" sh -s finish < {shlex.quote(str(script))}']
        argv += [base.suite, part]
        if mirrors := machine_mirrors(base.suite):  # in a file: an address may hold a password
            sources = Path(work) / "sources.list"
            sources.touch(mode=0o600)
            sources.write_text("".join(f"{line}\n" for line in mirrors))
            argv.append(sources)
        log = folder / f"{arch}.log"
        with log.open("wb") as out:
            status = proc.stream(argv, log=out, env={**env, "SOURCE_DATE_EPOCH": str(epoch)})
        if status:
            raise _bootstrap_failure(log, base, arch)
        tar = folder / f"{arch}.tar"
        part.replace(tar)
        return {
            "release": release.read_text().strip(),
            "packages": _packages(tar),
            "seconds": round(time.monotonic() - begun, 1),
            "emulated": arch != host_arch(),
        }


def _bootstrap_failure(log: Path, base: BasePlan, arch: str) -> Exception:
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    text, last = "\n".join(lines).lower(), "\n".join(lines[-12:])
    if "no space left" in text:
        return DiskError(f"the disk is full: Debian {base.suite} for {arch} was not made", hint="imgbuild df")
    if "foreign architecture" in text or "exec format" in text or "binfmt" in text:
        return EngineError(
            f"this machine cannot run {arch} programs, so Debian {base.suite} for it was not made",
            hint="imgbuild doctor --fix",
        )
    if any(
        sign in text
        for sign in ("could not resolve", "could not connect", "failed to fetch", "unable to connect")
    ):
        return NetworkError(
            f"neither a registry nor a Debian mirror can be reached for {base.suite}:\n{last}",
            hint="imgbuild doctor looks at proxy and certificates",
        )
    return ConfigError(f"Debian {base.suite} for {arch} was not made:\n{last}", hint=f"the whole log: {log}")


def _packages(tar: Path) -> str:
    """Hash of the list of installed packages and versions, which is what a refresh would change."""
    listed = proc.run(
        ["tar", "--extract", "--to-stdout", f"--file={tar}", "./usr/share/imgbuild/debian-packages.txt"]
    )
    return hashlib.sha256(listed.stdout.encode()).hexdigest()


def _export(folder: Path, *, arch: str, epoch: int, env: Mapping[str, str]) -> Any:
    """Have BuildKit write the tar as an image into the layout; return its manifest's descriptor."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        return _export_in(
            Path(work), folder / f"{arch}.tar", folder / "layout", arch=arch, epoch=epoch, env=env
        )


def _export_in(work: Path, tar: Path, layout: Path, *, arch: str, epoch: int, env: Mapping[str, str]) -> Any:
    context, out = work / "context", work / "oci"
    context.mkdir()
    os.link(tar, context / "base.tar")
    (context / "Dockerfile").write_text(
        "FROM scratch\nADD base.tar /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n"
    )
    argv = ["docker", "buildx", "build", "--platform", f"linux/{arch}", "--provenance=false"]
    argv += ["--build-arg", f"SOURCE_DATE_EPOCH={epoch}", "--no-cache"]
    argv += ["--output", f"type=oci,dest={out},tar=false,compression=zstd,oci-mediatypes=true", str(context)]
    proc.run(argv, env=env, timeout=_BOOTSTRAP_TIMEOUT)
    index: Any = json.loads((out / "index.json").read_text())
    descriptor = index["manifests"][0]
    while descriptor["mediaType"] == _INDEX_TYPE:  # an index around one manifest
        inner: Any = json.loads(_blob(out, descriptor["digest"]).read_text())
        descriptor = inner["manifests"][0]
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for blob in (out / "blobs" / "sha256").iterdir():
        shutil.move(blob, blobs / blob.name)
    return {
        "mediaType": descriptor["mediaType"],
        "digest": descriptor["digest"],
        "size": descriptor["size"],
        "platform": {"architecture": arch, "os": "linux"},
    }


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _write_index(layout: Path, platforms: Mapping[str, Any]) -> str:
    """One index over all platforms, as an OCI layout; return its digest."""
    manifests = [platforms[arch]["manifest"] for arch in sorted(platforms)]
    index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": manifests})
    digest = f"sha256:{hashlib.sha256(index.encode()).hexdigest()}"
    write_atomically(_blob(layout, digest), index)
    top = [{"mediaType": _INDEX_TYPE, "digest": digest, "size": len(index)}]
    write_atomically(layout / "oci-layout", '{"imageLayoutVersion": "1.0.0"}\n')
    write_atomically(
        layout / "index.json",
        json.dumps({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": top}) + "\n",
    )
    return digest


def machine_mirrors(suite: str) -> tuple[str, ...]:
    """apt's lines for `suite` from the mirrors that this Debian machine already uses; empty: mmdebstrap's own."""
    from imgbuild.doctor.mend.apt import main_archive, parse_sources  # noqa: PLC0415

    files = {}
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            files[str(path)] = path.read_text()
    release = {}
    with contextlib.suppress(OSError):
        release = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
        )
    if release.get("ID", "").strip('"') != "debian":
        return ()
    found = parse_sources(files)
    main = main_archive(found, release.get("VERSION_CODENAME", "").strip('"'))
    security = next((s for s in found if any(x.endswith("-security") for x in s.suites)), None)
    if main is None or security is None:
        return ()
    return (
        f"deb {main.uris[0]} {suite} main",
        f"deb {main.uris[0]} {suite}-updates main",
        f"deb {security.uris[0]} {suite}-security main",
    )
