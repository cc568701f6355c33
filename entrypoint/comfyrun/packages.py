"""Packages of custom nodes: installed by the image's own pip, under the image's constraints, outside of the image.

What is installed in the image counts as installed and is never touched: a requirement that it does not meet is
refused. All nodes are resolved together, into a folder that takes the old one's place only when it is whole.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun import redact
from comfyrun.errors import ConfigError, MachineError
from comfyrun.overlay import Package, baked, installed, normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from comfyrun.layout import Layout

# Settings of pip that would send packages elsewhere, or touch what is installed.
_HARMFUL = (
    *("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_REPORT", "PIP_DRY_RUN"),
    *("PIP_UPGRADE", "PIP_FORCE_REINSTALL", "PIP_IGNORE_INSTALLED", "PIP_NO_DEPS", "PIP_REQUIRE_HASHES"),
    *("PIP_REQUIREMENT", "PIP_EDITABLE", "PIP_QUIET", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"),
)

# The head of a requirement, in a file or in what pip says.
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(@|[<>=!~;,(]|$)")
_WHEEL = re.compile(
    r"(?:^|/)([A-Za-z0-9][A-Za-z0-9._]*)-[0-9][^/-]*(?:-[^/-]+)?-[^/-]+-[^/-]+-[^/-]+\.whl(?:[?#]|$)"
)
# Where else a node's own file tells pip to look.
_PLACES = (
    "--index-url",
    "-i ",
    "--extra-index-url",
    "--find-links",
    "-f ",
    "--trusted-host",
    "--no-index",
    "--pre",
)
_ASKED = re.compile(r" {4}The user requested (?!\(constraint\))(.+)")
_DEPENDS = re.compile(r" {4}(\S+ \S+) depends on (.+)")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What one node asks for."""

    node: str
    file: Path
    lines: tuple[str, ...]


def read_requirements(node: str, folder: Path, work: Path) -> Requirements | None:
    """Of requirements.txt, else of pyproject.toml; None when the node needs nothing."""
    file = folder / "requirements.txt"
    try:
        if not file.is_file():
            wanted = _of_pyproject(folder / "pyproject.toml")
            if not wanted:
                return None
            file = work / f"{node}.txt"
            file.write_text("\n".join([*wanted, ""]), encoding="utf-8")
        lines = [_bare(line) for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{node}: what it requires cannot be read: {error}") from None
    wanted_lines = tuple(line for line in lines if line)
    return Requirements(node=node, file=file, lines=wanted_lines) if wanted_lines else None


def _of_pyproject(path: Path) -> list[str]:
    import tomllib  # noqa: PLC0415

    if not path.is_file():
        return []
    match tomllib.loads(path.read_text(encoding="utf-8")):
        case {"project": {"dependencies": [*wanted]}}:
            return [w for w in wanted if isinstance(w, str)]
        case _:
            return []


def _bare(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def refuse_replacements(wanted: Iterable[Requirements], have: Mapping[str, str]) -> None:
    """Raises ConfigError for a file or an address in place of what the image holds, before it is fetched."""
    refused = []
    for requirements in wanted:
        for line in requirements.lines:
            wheel = _WHEEL.search(line)
            head = _REQUIREMENT.match(line)
            direct = head[1] if head and head[2] == "@" else wheel[1] if wheel else ""
            if direct and normal(direct) in have:
                refused.append(_refusal(requirements.node, line, normal(direct), have))
    if refused:
        raise ConfigError(*refused)


def _refusal(who: str, wants: str, name: str, have: Mapping[str, str]) -> str:
    return (
        f"refused: {who} asks for {redact.of().text(wants)}, and this image has {name} {have[name]}, which it was "
        "built and tested with and which nothing may replace"
    )


@dataclass(frozen=True, kw_only=True)
class Installer:
    """pip, out of the wheel that Debian's python3-venv carries, unless somebody put one into the environment."""

    layout: Layout
    environ: Mapping[str, str]
    cache: str
    work: Path
    """An empty folder on the data volume: /tmp may be small, and memory."""
    show: Callable[[str], None]

    def install(self, wanted: Sequence[Requirements], site: Path) -> list[Package]:
        """Everything that `wanted` needs beyond the image, into the new folder `site`.

        Raises ConfigError when something is refused, MachineError when pip does not succeed.
        """
        have = baked(self.layout)
        refuse_replacements(wanted, have)
        site.mkdir(parents=True)
        found = self._resolve(wanted, have)
        replaced = [i for i in found if i.name in have]
        if replaced:
            raise ConfigError(*(_refusal(_nodes(wanted), i.line, i.name, have) for i in replaced))
        if found:
            # Once more without dependencies: --target would install the image's own a second time.
            hashed = all(i.sha256 for i in found)
            file = self.work / "found.txt"
            places = [x for r in wanted for x in r.lines if x.startswith(_PLACES)]
            text = "\n".join([*dict.fromkeys(places), *(i.pinned(hashed=hashed) for i in found), ""])
            file.write_text(text, encoding="utf-8")
            arguments = ["--no-deps", "--target", str(site), "--requirement", str(file)]
            code, said = self._pip("install", *arguments)
            if code:
                raise MachineError(_failure(said))
        return installed(site)

    def _resolve(self, wanted: Sequence[Requirements], have: Mapping[str, str]) -> list[_Found]:
        report, constraints = self.work / "report.json", self.work / "constraints.txt"
        constraints.write_text(self._constraints(have), encoding="utf-8")
        arguments = ["--dry-run", "--report", str(report), "--constraint", str(constraints)]
        for requirements in wanted:
            arguments += ["--requirement", str(requirements.file)]
        code, said = self._pip("install", "--prefer-binary", *arguments)
        if code:
            refused = _refusals(said, wanted, have)
            if refused:
                raise ConfigError(*refused)
            raise MachineError(_failure(said))
        try:
            return [_found(item) for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MachineError(f"pip's report cannot be read: {error!r}") from None

    def _constraints(self, have: Mapping[str, str]) -> str:
        """Of the file that was baked, what is not installed; and everything that is, at its version."""
        try:
            lines = (self.layout.etc / "constraints.txt").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        other = [x for x in lines if (head := _REQUIREMENT.match(x)) and normal(head[1]) not in have]
        return "\n".join([*(f"{name}=={version}" for name, version in sorted(have.items())), *other, ""])

    def _pip(self, *arguments: str) -> tuple[int, list[str]]:
        command = [str(self.layout.python), "-I", str(self._unpacked()), *arguments]
        command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        command += ["--no-warn-script-location", "--cache-dir", f"{self.cache}/pip"]
        environment = {k: v for k, v in self.environ.items() if k not in _HARMFUL}
        environment |= {"TMPDIR": str(self.work), "PIP_REQUIRE_VIRTUALENV": "0"}
        hide = redact.of(self.environ)
        said = []
        try:
            with subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=self.work,
            ) as process:
                assert process.stdout
                for line in process.stdout:
                    said.append(hide.text(line.rstrip("\n")))
                    self.show(said[-1])
        except OSError as error:
            raise MachineError(f"{command[0]} cannot be started: {error.strerror}") from None
        return process.returncode, said

    def _unpacked(self) -> Path:
        """As a folder: out of a wheel pip cannot build what has no wheel of its own."""
        for own in self.layout.venv.glob("lib/python3*/site-packages/pip/__main__.py"):
            return own.parent
        target = self.work / "installer"
        if not target.exists():
            wheels = sorted(self.layout.wheels.glob("pip-*.whl"))
            if not wheels:
                raise MachineError(
                    f"this image has no installer: {self.layout.wheels} holds no pip (Debian's python3-venv brings it)"
                )
            try:
                with zipfile.ZipFile(wheels[-1]) as wheel:
                    wheel.extractall(target)
            except (OSError, zipfile.BadZipFile) as error:
                shutil.rmtree(target, ignore_errors=True)
                raise MachineError(f"{wheels[-1]} cannot be unpacked: {error}") from None
        return target / "pip"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What pip would install."""

    name: str
    version: str
    url: str
    direct: bool
    sha256: str | None

    @property
    def line(self) -> str:
        return f"{self.name} {self.version} ({self.url})" if self.direct else f"{self.name} {self.version}"

    def pinned(self, *, hashed: bool) -> str:
        place = f"{self.name} @ {self.url}" if self.direct else f"{self.name}=={self.version}"
        return f"{place} --hash=sha256:{self.sha256}" if hashed else place


def _found(item: Mapping[str, dict[str, object]]) -> _Found:
    download, metadata = item["download_info"], item["metadata"]
    url, sha256 = str(download["url"]), None
    match download:
        case {"archive_info": {"hashes": {"sha256": str(found)}}}:
            sha256 = found
        case {"vcs_info": {"vcs": str(vcs), "commit_id": str(commit)}}:
            url = f"{vcs}+{url}@{commit}"
    return _Found(
        name=normal(str(metadata["name"])),
        version=str(metadata["version"]),
        url=url,
        direct=bool(item["is_direct"]),
        sha256=sha256,
    )


# --- what pip says -----------------------------------------------------------------------------


def _refusals(said: Sequence[str], wanted: Sequence[Requirements], have: Mapping[str, str]) -> list[str]:
    """Which package, what was wanted, what there is; or which nodes want different things."""
    refused, others = [], []
    for line in said:
        asked, depends = _ASKED.match(line), _DEPENDS.match(line)
        if not asked and not depends:
            continue
        wants = asked[1] if asked else depends[2] if depends else ""
        head = _REQUIREMENT.match(wants)
        name = normal(head[1]) if head else ""
        who = _nodes(wanted, wants if asked else None)
        if depends:
            who = f"{depends[1]}, which {who} needs,"
        if name in have:
            refused.append(_refusal(who, wants, name, have))
        else:
            others.append(f"{who} asks for {wants}")
    if not refused and others:
        refused = [
            "refused: these do not go together, so nothing was changed: " + "; ".join(dict.fromkeys(others))
        ]
    return list(dict.fromkeys(refused))


def _nodes(wanted: Sequence[Requirements], requirement: str | None = None) -> str:
    """Those that ask for just that, or all."""
    squeezed = re.sub(r"\s", "", requirement or "")
    named = [r.node for r in wanted if any(re.sub(r"\s", "", x).startswith(squeezed) for x in r.lines)]
    if not named and requirement and (head := _REQUIREMENT.match(requirement)):
        named = [r.node for r in wanted if any(_same(x, head[1]) for x in r.lines)]
    return " or ".join(named or [r.node for r in wanted])


def _same(line: str, name: str) -> bool:
    head = _REQUIREMENT.match(line)
    return head is not None and normal(head[1]) == normal(name)


def _failure(said: Sequence[str]) -> str:
    text = "\n".join(said)
    # Its own word first; of a build that failed, what that raised.
    errors = [x.strip() for x in said if x.startswith("ERROR:")]
    raised = [x.strip() for x in said if re.match(r"\s+[\w.]+Error: ", x)]
    last = [x.strip() for x in said if x.strip()]
    found = (errors[:1] or raised[-1:] or last[-1:] or ["it said nothing"])[0]
    message = f"pip did not succeed, and nothing was changed: {found[:500]}"
    if "Cannot find command 'git'" in text:
        message += (
            "; there is no git in this image: name the package's release instead, or build an image of your own "
            "(docs/deriving.md)"
        )
    elif re.search(r"NewConnectionError|NameResolutionError|ConnectTimeout|getaddrinfo", text):
        message += "; the package index cannot be reached: HTTPS_PROXY, PIP_INDEX_URL and PIP_CERT say how, as everywhere"
    elif re.search(r"No space left on device", text):
        message += "; the disk is full"
    elif re.search(
        r"error: command .*(gcc|g\+\+|cc1plus|cmake|nvcc)|Failed building wheel|to build wheel", text
    ):
        message += (
            "; it has no wheel for this Python and would have to be built, for which the image has not the tools: "
            "build an image of your own (docs/deriving.md)"
        )
    return message
