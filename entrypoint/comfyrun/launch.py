"""Profile + COMFY_ variables + arguments → Launch: one pure function."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from comfyrun import advice, foreign, models, options, overlay, tls
from comfyrun import settings as settings_module
from comfyrun.errors import ConfigError
from comfyrun.flagtable import Option
from comfyrun.options import OWN
from comfyrun.role import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from comfyrun.envfile import EnvFile
    from comfyrun.flagtable import FlagTable
    from comfyrun.layout import Layout
    from comfyrun.profile import Image, Profile
    from comfyrun.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the pure function has to know of the process it runs in."""

    uid: int
    gid: int
    user: str | None  # the passwd name of the UID, if it has one
    home_writable: bool
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of COMFY_MODELS, what `models.look` found."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    name: str
    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Directory:
    path: str
    purpose: str
    # A models folder may well be mounted read-only; then it only has to be there.
    needs: Literal["write", "exist"]
    given: str | None = None
    """Who named it, when it lies outside our own volumes: then it is never made, and must be there."""


@dataclass(frozen=True, kw_only=True)
class File:
    """What has to be readable; with a text, what is written first."""

    path: str
    purpose: str
    origin: str
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    image: Image
    settings: Settings
    profile: str
    profile_origin: str
    tier: str | None
    attention: str
    argv: tuple[str, ...]  # [0] is the program
    workdir: str
    environment: Mapping[str, str]  # all of it, as the process gets it
    variables: tuple[Variable, ...]  # the part of it that comfyrun decided or looked at
    options: tuple[Option, ...]
    directories: tuple[Directory, ...]
    files: tuple[File, ...]
    listen: tuple[str, ...]
    port: int
    tls: bool
    notes: tuple[str, ...]

    @property
    def strict(self) -> bool:
        return self.settings.strict

    @property
    def cache(self) -> str:
        return self.settings.cache

    @property
    def models(self) -> tuple[str, ...]:
        """What COMFY_MODELS names: folders and files."""
        return self.settings.models

    @property
    def log(self) -> str:
        """text or json."""
        return self.settings.log

    @property
    def nodes(self) -> bool:
        """Whether custom nodes are loaded."""
        return self.settings.nodes


def plan(
    *,
    image: Image,
    table: FlagTable,
    layout: Layout,
    environ: Mapping[str, str],
    arguments: Sequence[str],
    machine: Machine,
    file: EnvFile | None = None,
    memory: float | None = None,
    display: bool = False,
    dropped: Mapping[str, str] | None = None,
    role: Role | None = None,
) -> Launch:
    """What to start. Raises ConfigError with every mistake that was made.

    `file` is what stands in comfyrun.env. `memory` is the GPU's, in GiB, and `display` whether a monitor is
    attached to it: they pick the tier. `dropped` names the kernels that did not pass their check, with the
    reason: SDPA takes their place, or KernelError is raised where COMFY_STRICT is set.
    """
    settings = settings_module.read(environ, file)
    profile = image.profile(settings.profile, settings.origin("profile"))
    tier = image.tier(memory) if profile.name == "default" else None
    asked = options.asked(
        image=image,
        profile=profile,
        tier=tier,
        display=display,
        table=table,
        settings=settings,
        arguments=arguments,
    )
    data, data_origin = _data(asked.options)
    own = (role or Role()).options(
        table,
        layout,
        data=(data, data_origin),
        user=_elsewhere(asked.options, "--user-directory", data),
        cache=settings.cache,
    )
    extra = _extra_models(settings, machine, table, data)
    chosen, replaced = options.merge(table, [*own, *extra.options], asked, image)
    chosen, fallen = options.fall_back(chosen, table, dropped or {}, strict=settings.strict)
    listen, port = _address(chosen)
    certificates = _certificates(chosen)

    compiled = f"{settings.cache}/{image.target}-torch{image.torch}"
    places = {"{data}": data, "{cache}": settings.cache, "{compiled}": compiled}
    nodes = overlay.variables(
        layout, data, image.torch, {**settings.environment, **environ}, nodes=settings.nodes
    )
    variables, made = _variables(profile, settings, environ, machine, places, nodes)
    return Launch(
        image=image,
        settings=settings,
        profile=profile.name,
        profile_origin=settings.origin("profile"),
        tier=tier.name if tier else None,
        attention=options.attention(chosen),
        argv=(str(layout.python), str(layout.main), *(token for o in chosen for token in o.tokens)),
        workdir=data,
        environment={**environ, **{v.name: v.value for v in variables}},
        variables=tuple(variables),
        options=tuple(chosen),
        directories=(*_directories(chosen, data, settings), *made, *extra.directories),
        files=(*extra.files, *certificates),
        listen=listen,
        port=port,
        tls=bool(certificates),
        notes=(
            *settings.notes,
            *foreign.answers({**settings.environment, **environ}, uid=machine.uid, gid=machine.gid),
            *extra.notes,
            *dict.fromkeys((*replaced, *fallen)),
            *_harm(profile, {**settings.environment, **environ}),
        ),
    )


# --- directories and files ---------------------------------------------------------------------


def _data(given: Sequence[Option]) -> tuple[str, str]:
    """The data directory and who named it: whoever gives --base-directory means it."""
    option = options.last(given, "--base-directory")
    if option is None:
        return settings_module.Settings.data, "default"
    try:
        return settings_module.check_path(option.values[0]), option.origin
    except ValueError as error:
        raise ConfigError(f"{option.origin}: --base-directory {error}") from None


def _elsewhere(given: Sequence[Option], name: str, data: str) -> tuple[str, str] | None:
    """The directory that a flag names, and its origin; ComfyUI is started in the data directory."""
    option = options.last(given, name)
    if option is None or not option.values:
        return None
    return posixpath.normpath(posixpath.join(data, option.values[0])), option.origin


def _directories(given: Sequence[Option], data: str, settings: Settings) -> Iterator[Directory]:
    kinds: tuple[tuple[str, str, str, Literal["write", "exist"]], ...] = (
        ("models", "--models-directory", "models", "exist"),
        ("input", "--input-directory", "input", "exist"),
        ("custom_nodes", "", "custom nodes", "exist"),
        ("output", "--output-directory", "output", "write"),
        ("temp", "--temp-directory", "previews", "write"),
        ("user", "--user-directory", "settings, workflows, database", "write"),
    )
    for name, flag, purpose, needs in kinds:
        path, origin = _elsewhere(given, flag, data) or (f"{data}/{name}", None)
        ours = any(path == place or path.startswith(f"{place}/") for place in (data, settings.cache))
        yield Directory(path=path, purpose=purpose, needs=needs, given=None if ours else origin)
    yield Directory(path=settings.cache, purpose="caches", needs="write")
    # ComfyUI's parser insists that these are there, and would answer with all of its usage.
    known = {flag for _, flag, _, _ in kinds}
    for option in given:
        if option.flag.type == "directory" and option.values and not known & set(option.flag.names):
            path = posixpath.normpath(posixpath.join(data, option.values[0]))
            yield Directory(path=path, purpose=option.name, needs="exist", given=option.origin)


@dataclass(frozen=True, kw_only=True)
class _Extra:
    """What COMFY_MODELS adds."""

    options: tuple[Option, ...] = ()
    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()
    notes: tuple[str, ...] = ()


def _extra_models(settings: Settings, machine: Machine, table: FlagTable, data: str) -> _Extra:
    flag = table.get("--extra-model-paths-config")
    if not settings.models or flag is None:
        return _Extra()
    origin, purpose = settings.origin("models"), "more models"
    files = [File(path=p, purpose=purpose, origin=origin) for p in settings.models if models.is_file(p)]
    found, notes = {}, []
    for folder in (p for p in settings.models if not models.is_file(p)):
        if folder in (data, f"{data}/models"):
            notes.append(f"{origin}: {folder} is where ComfyUI looks anyway")
            continue
        found[folder] = models.places(folder, machine.folders.get(folder))
        if not found[folder]:
            notes.append(
                f"{origin}: {folder} has no folders like checkpoints or loras, so nothing in it is found"
            )
    if any(found.values()):
        text = models.extra_model_paths({f: kinds for f, kinds in found.items() if kinds})
        path = f"{settings.cache}/comfyrun/{models.file_name(text)}"
        files.append(File(path=path, purpose=purpose, origin=origin, text=text))
    return _Extra(
        options=tuple(Option(flag=flag, name=flag.names[0], values=(f.path,), origin=origin) for f in files),
        directories=tuple(Directory(path=f, purpose=purpose, needs="exist", given=origin) for f in found),
        files=tuple(files),
        notes=tuple(notes),
    )


def _certificates(given: Sequence[Option]) -> list[File]:
    """The files that https takes. Raises ConfigError when there is one only: ComfyUI would serve http."""
    found = {name: options.last(given, name) for name in ("--tls-certfile", "--tls-keyfile")}
    for name, option in found.items():
        if option is None and any(found.values()):
            other = next(o for o in found.values() if o)
            raise ConfigError(
                f"{other.origin}: {other.name} without {name} would serve plain http: set both COMFY_TLS_CERT and "
                "COMFY_TLS_KEY"
            )
    return [File(path=o.values[0], purpose=tls.PURPOSE, origin=o.origin) for o in found.values() if o]


def _address(given: Sequence[Option]) -> tuple[tuple[str, ...], int]:
    listen, port = "127.0.0.1", "8188"
    mistakes = []
    for option in given:
        try:
            match option.name:
                case "--listen":
                    address = option.values[0] if option.values else str(option.flag.const)
                    listen = settings_module.check_listen(address)
                case "--port":
                    port = settings_module.check_port(option.values[0])
        except ValueError as error:
            mistakes.append(f"{option.origin}: {option.name} {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    return tuple(listen.split(",")), int(port)


# --- environment -------------------------------------------------------------------------------

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    variable: Variable
    folder: bool = False
    """Its value names one, which is made."""
    insists: bool = False
    """Over what is set."""


def _variables(
    profile: Profile,
    settings: Settings,
    environ: Mapping[str, str],
    machine: Machine,
    places: Mapping[str, str],
    nodes: Iterable[tuple[str, str]],
) -> tuple[list[Variable], list[Directory]]:
    """What profile and file set, what custom nodes and a UID without a home need; and the folders these name."""
    variables: dict[str, Variable] = {}
    folders: list[Directory] = []
    for wanted in (
        *_of_profile(profile, places),
        *_of_settings(settings),
        *_of_user(settings, environ, machine),
        *(
            _Wanted(variable=Variable(name=n, value=v, origin=f"{OWN}: custom nodes"), insists=True)
            for n, v in nodes
        ),
    ):
        ours = wanted.variable
        name = ours.name
        if wanted.insists or not (name in variables or name in environ or name in settings.environment):
            variables[name] = ours
            if wanted.folder:
                folders.append(Directory(path=ours.value, purpose=name, needs="write"))
        elif name in environ:
            variables[name] = Variable(name=name, value=environ[name], origin="environment")
        elif name in settings.environment:
            origin = settings.others[name].origin
            variables[name] = Variable(name=name, value=settings.environment[name], origin=origin)
    return list(variables.values()), folders


def _of_profile(profile: Profile, places: Mapping[str, str]) -> Iterator[_Wanted]:
    for name, pattern in profile.environment.items():
        value = pattern
        # Not str.format: a value is data, and may hold braces of its own.
        for word, place in places.items():
            value = value.replace(word, place)
        variable = Variable(name=name, value=value, origin=f"profile {profile.name}")
        yield _Wanted(variable=variable, folder=pattern.startswith(("{cache}/", "{compiled}/")))


def _of_settings(settings: Settings) -> Iterator[_Wanted]:
    if settings.offline:
        for name, value in _OFFLINE.items():
            yield _Wanted(variable=Variable(name=name, value=value, origin=settings.origin("offline")))
    for name, value in settings.environment.items():
        yield _Wanted(variable=Variable(name=name, value=value, origin=settings.others[name].origin))


def _of_user(settings: Settings, environ: Mapping[str, str], machine: Machine) -> Iterator[_Wanted]:
    """What libraries expect of a user, on the cache volume."""
    given = {**settings.environment, **environ}
    cache = settings.cache
    if not machine.home_writable and not settings.environment.get("HOME"):
        # An engine gives a UID without a passwd entry HOME=/.
        home = Variable(name="HOME", value=f"{cache}/home", origin=f"{OWN}: no writable home")
        yield _Wanted(variable=home, folder=True, insists=True)
    for name, value in (("XDG_CACHE_HOME", f"{cache}/xdg"), ("MPLCONFIGDIR", f"{cache}/matplotlib")):
        if not given.get(name):
            yield _Wanted(variable=Variable(name=name, value=value, origin=OWN), folder=True, insists=True)
    if machine.user is None:
        # torch's inductor calls getpass.getuser(), which fails for a UID without a passwd entry.
        for name in ("USER", "LOGNAME"):
            if not given.get(name):
                variable = Variable(name=name, value="comfy", origin=f"{OWN}: UID {machine.uid} has no name")
                yield _Wanted(variable=variable, insists=True)


def _harm(profile: Profile, environment: Mapping[str, str]) -> Iterator[str]:
    for never in advice.against(environment):
        yield f"{never.name}={environment[never.name]} does harm, unset it: {never.why}"
    own = [n.name for n in advice.against(profile.environment) if n.name not in environment]
    if own:
        yield (
            f"profile {profile.name} sets {', '.join(own)} as its document does, for comparison only: "
            "docs/profiles.md says what they cost"
        )
