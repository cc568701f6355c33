"""Locks made: uv resolves, the index says which files there are, one wheel each is chosen."""

from __future__ import annotations

import hashlib
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from imgbuild import proc
from imgbuild.errors import ConfigError, NetworkError
from imgbuild.lock import Lock, Wheel, inputs_hash, manylinux

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imgbuild.matrix import Matrix, Target
    from imgbuild.settings import Settings

_OFFLINE = (
    "error sending request",
    "dns error",
    "failed to fetch",
    "connection refused",
    "network connectivity is disabled",
)
_TIMEOUT = 900


def uv_program() -> str:
    """uv comes with the tool."""
    from uv import find_uv_bin  # noqa: PLC0415  (uv is only needed where something is resolved)

    return str(find_uv_bin())


def resolve_target(
    target: Target,
    matrix: Matrix,
    requirements: Sequence[str],
    *,
    settings: Settings,
    env: Mapping[str, str],
    keep: Sequence[Wheel] = (),
) -> Lock:
    """Resolve a target's wheels for its platform and Python; versions of `keep` stay where they still fit."""
    wheels = resolve(
        [*requirements, f"torch=={target.torch}"],
        python=matrix.base_of(target).python,
        platform=manylinux(target, matrix),
        settings=settings,
        env=env,
        keep=keep,
    )
    return Lock(inputs=inputs_hash(requirements, target, matrix), wheels=wheels)


def resolve(
    requirements: Sequence[str],
    *,
    python: str,
    platform: str,
    settings: Settings,
    env: Mapping[str, str],
    keep: Iterable[Wheel] = (),
    no_deps: bool = False,
) -> tuple[Wheel, ...]:
    """The wheels that satisfy `requirements` on a platform in uv's spelling, each with hash and size."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.in"
        wanted.write_text("\n".join(requirements) + "\n")
        output = Path(folder) / "pylock.toml"
        if keep:  # uv prefers the versions that its output file already holds
            output.write_text(_preferences(keep, python))
        argv = [uv_program(), "pip", "compile", str(wanted), "--python-version", python]
        argv += [
            "--python-platform",
            platform,
            "--only-binary",
            ":all:",
            "--no-config",
            "--no-progress",
            "--quiet",
        ]
        argv += ["--format", "pylock.toml", "--output-file", str(output), *(["--no-deps"] if no_deps else [])]
        done = proc.run(argv, env=settings.environment(env), check=False, timeout=_TIMEOUT)
        if done.returncode:
            raise _failure(done.stderr or done.stdout, python, platform)
        packages = tomllib.loads(output.read_text())["packages"]
    tags = {tag: rank for rank, tag in enumerate(_tags(python, platform))}
    files = [_choose(package, tags) for package in packages]
    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda f: _size(f, settings), files)
        return tuple(
            sorted(
                Wheel(
                    name=canonicalize_name(package["name"]),
                    version=package["version"],
                    filename=_filename(file),
                    sha256=file["hashes"]["sha256"],
                    size=size,
                )
                for package, file, size in zip(packages, files, sizes, strict=True)
            )
        )


def resolve_sdist(requirement: str, *, settings: Settings, env: Mapping[str, str]) -> Wheel:
    """The source archive of a pinned version, without running any of its code."""
    name, _, version = requirement.partition("==")
    with tempfile.TemporaryDirectory() as folder:
        wanted, config = Path(folder) / "requirements.in", Path(folder) / "uv.toml"
        wanted.write_text(f"{requirement}\n")
        # Or uv would run its setup.py, which imports torch, to ask what it depends on.
        config.write_text(
            f'[[dependency-metadata]]\nname = "{name}"\nversion = "{version}"\nrequires-dist = []\n'
        )
        output = Path(folder) / "pylock.toml"
        argv = [uv_program(), "pip", "compile", str(wanted), "--config-file", str(config), "--no-progress"]
        argv += ["--quiet", "--no-deps", "--no-binary", ":all:", "--format", "pylock.toml"]
        argv += ["--output-file", str(output)]
        done = proc.run(argv, env=settings.environment(env), check=False, timeout=_TIMEOUT)
        if done.returncode:
            raise _failure(done.stderr or done.stdout, "of any version", "any platform")
        package = tomllib.loads(output.read_text())["packages"][0]
    if "sdist" not in package:
        raise ConfigError(f"the package index has no source archive of {requirement}")
    file = package["sdist"]
    return Wheel(
        name=canonicalize_name(name),
        version=version,
        filename=_filename(file),
        sha256=file["hashes"]["sha256"],
        size=_size(file, settings),
    )


def _preferences(wheels: Iterable[Wheel], python: str) -> str:
    lines = ['lock-version = "1.0"', 'created-by = "imgbuild"', f'requires-python = ">={python}"']
    for w in wheels:
        file = f'{{ url = "file:///{w.filename}", hashes = {{ sha256 = "{w.sha256}" }} }}'
        lines += ["[[packages]]", f'name = "{w.name}"', f'version = "{w.version}"', f"wheels = [{file}]"]
    return "\n".join(lines) + "\n"


def _failure(output: str, python: str, platform: str) -> ConfigError | NetworkError:
    last = "\n".join(output.strip().splitlines()[-12:])
    if any(sign in output.lower() for sign in _OFFLINE):
        return NetworkError(
            f"the package index cannot be reached:\n{last}",
            hint="imgbuild doctor looks at index, proxy and certificates",
        )
    hint = None
    if "+cpu" in output:
        hint = (
            "the CPU build of torch is not on the default index: name a folder with its wheel (--wheels DIR) "
            "or an index that has it (PIP_EXTRA_INDEX_URL)"
        )
    return ConfigError(f"no set of wheels fits Python {python} on {platform}:\n{last}", hint=hint)


def _tags(python: str, platform: str) -> Iterable[Tag]:
    machine, _, glibc = platform.partition("-manylinux_2_")
    floor = 5 if machine == "x86_64" else 17
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(int(glibc), floor - 1, -1)]
    platforms += [f"manylinux2014_{machine}"]
    platforms += [f"manylinux2010_{machine}", f"manylinux1_{machine}"] if machine == "x86_64" else []
    platforms += [f"linux_{machine}"]
    major, minor = (int(p) for p in python.split("."))
    yield from cpython_tags((major, minor), [f"cp{major}{minor}"], platforms)
    yield from compatible_tags((major, minor), f"cp{major}{minor}", platforms)


def _choose(package: Any, tags: Mapping[Tag, int]) -> Any:
    """The file that an installer on that platform would take: the best tag, then the highest build number."""
    ranked = []
    for file in package.get("wheels", ()):
        _, _, build, file_tags = parse_wheel_filename(_filename(file))
        ranks = [tags[tag] for tag in file_tags if tag in tags]
        if ranks:
            number = build[0] if build else 0
            ranked.append((min(ranks), -number, _filename(file), file))
    if not ranked:
        raise ConfigError(f"{package['name']} {package['version']} has no wheel for this platform")
    return min(ranked, key=lambda r: r[:3])[3]


def _filename(file: Any) -> str:
    name = file.get("name") or unquote(urlsplit(file["url"]).path).rpartition("/")[2]
    return str(name)


def _size(file: Any, settings: Settings) -> int:
    """Bytes of a file: as the index says, else as its server says."""
    import requests  # noqa: PLC0415

    if isinstance(file.get("size"), int):
        return int(file["size"])
    url = file["url"]
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).stat().st_size
    verify = str(settings.ca_bundle) if settings.ca_bundle else True
    name = unquote(parts.path).rpartition("/")[2]
    try:
        # uv leaves a password out of what it writes.
        auth = settings.credentials(parts.hostname or "")
        answer = requests.head(url, allow_redirects=True, timeout=60, verify=verify, auth=auth)
    except requests.RequestException as e:
        raise NetworkError(
            f"the package index does not say how large {name} is: {type(e).__name__}"
        ) from None
    length = answer.headers.get("Content-Length", "")
    if not answer.ok or not length.isdigit():
        raise NetworkError(f"the package index does not say how large {name} is: status {answer.status_code}")
    return int(length)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
