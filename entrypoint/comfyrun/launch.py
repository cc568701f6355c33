"""Profile + COMFY_ variables + arguments → Launch: one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comfyrun import settings as settings_module
from comfyrun.errors import ConfigError
from comfyrun.flagtable import Flag, FlagTable, Option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from comfyrun.layout import Layout
    from comfyrun.profile import Image, Profile
    from comfyrun.settings import Settings

OWN = "comfyrun"
COMMAND_LINE = "command line"

# With --cpu these find no device: ComfyUI would exit, or fail and fall back at every call.
NEEDS_GPU = ("--use-sage-attention", "--use-flash-attention", "--use-ck-attention")

# What every ComfyUI must know for comfyrun to start it.
REQUIRED_FLAGS = (
    "--base-directory",
    "--extra-model-paths-config",
    "--listen",
    "--port",
    "--disable-auto-launch",
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the pure function has to know of the process it runs in."""

    uid: int
    gid: int
    user: str | None  # the passwd name of the UID, if it has one
    home_writable: bool


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


@dataclass(frozen=True, kw_only=True)
class Launch:
    image: Image
    profile: str
    profile_origin: str
    argv: tuple[str, ...]  # [0] is the program
    workdir: str
    environment: Mapping[str, str]  # all of it, as the process gets it
    variables: tuple[Variable, ...]  # the part of it that comfyrun decided or looked at
    options: tuple[Option, ...]
    directories: tuple[Directory, ...]
    listen: tuple[str, ...]
    port: int
    tls: bool
    notes: tuple[str, ...]


def plan(
    *,
    image: Image,
    table: FlagTable,
    layout: Layout,
    environ: Mapping[str, str],
    arguments: Sequence[str],
    machine: Machine,
) -> Launch:
    """What to start. Raises ConfigError with every mistake that was made."""
    settings = settings_module.read(environ)
    profile = image.profile(settings.profile, settings.origin("profile"))
    mistakes: list[str] = []

    def layer(tokens: Sequence[str], origin: str) -> list[Option]:
        options, wrong = table.parse(tokens, origin)
        mistakes.extend(wrong)
        return options

    baked = layer(profile.tokens, f"profile {profile.name}")
    variable = layer(settings.args, "COMFY_ARGS")
    typed = layer(arguments, COMMAND_LINE)
    if mistakes:
        raise ConfigError(*mistakes)

    # Whoever gives --base-directory means the data directory; the others follow from it.
    data, data_origin = _last(table, [*baked, *variable, *typed], "--base-directory") or (
        settings.data,
        settings.origin("data"),
    )
    try:
        data = settings_module.check_directory(data)
    except ValueError as error:
        raise ConfigError(f"{data_origin}: --base-directory {error}") from None

    options = own_options(table, layout, settings, data=data, data_origin=data_origin)
    notes = list(settings.notes)
    for above in (baked, variable, typed):
        options, replaced = table.overlay(options, above)
        notes += replaced
    options, dropped = _without_gpu(options, f"profile {profile.name}")
    notes += dropped

    listen, port = _address(options)
    variables, made = _variables(profile, settings, environ, machine, data)
    return Launch(
        image=image,
        profile=profile.name,
        profile_origin=settings.origin("profile"),
        argv=(str(layout.python), str(layout.main), *(token for o in options for token in o.tokens)),
        workdir=data,
        environment={**environ, **{v.name: v.value for v in variables}},
        variables=tuple(variables),
        options=tuple(options),
        directories=(*_directories(data, settings.cache), *made),
        listen=listen,
        port=port,
        tls=any(o.name == "--tls-keyfile" for o in options),
        notes=tuple(notes),
    )


def own_options(
    table: FlagTable, layout: Layout, settings: Settings, *, data: str, data_origin: str
) -> list[Option]:
    """The flags that every start gets, below those of the profile."""
    wanted = [
        ("--base-directory", data, data_origin),
        # Else 0.33 and later keep it inside their own read-only code.
        ("--database-url", f"sqlite:///{data}/user/comfyui.db", data_origin),
        ("--extra-model-paths-config", str(layout.extra_model_paths), OWN),
        ("--listen", settings.listen, settings.origin("listen")),
        ("--port", settings.port, settings.origin("port")),
        ("--disable-auto-launch", None, OWN),
    ]
    return [
        Option(flag=flag, name=name, values=() if value is None else (value,), origin=origin)
        for name, value, origin in wanted
        if (flag := table.get(name)) is not None
    ]


def _last(table: FlagTable, options: Sequence[Option], name: str) -> tuple[str, str] | None:
    flag: Flag | None = table.get(name)
    found = [(o.values[0], o.origin) for o in options if flag is not None and o.flag is flag and o.values]
    return found[-1] if found else None


def _without_gpu(options: Sequence[Option], profile: str) -> tuple[list[Option], list[str]]:
    cpu = next((o for o in options if o.name == "--cpu"), None)
    # A flag somebody typed beside --cpu stays: ComfyUI says what it thinks of it.
    lost = [o for o in options if cpu and o.name in NEEDS_GPU and o.origin == profile]
    kept = [o for o in options if o not in lost]
    return kept, [f"--cpu drops {o} ({o.origin}): it needs a GPU" for o in lost]


def _address(options: Sequence[Option]) -> tuple[tuple[str, ...], int]:
    listen, port = "127.0.0.1", "8188"
    mistakes = []
    for option in options:
        try:
            match option.name:
                case "--listen":
                    given = option.values[0] if option.values else str(option.flag.const)
                    listen = settings_module.check_listen(given)
                case "--port":
                    port = settings_module.check_port(option.values[0])
        except ValueError as error:
            mistakes.append(f"{option.origin}: {option.name} {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    return tuple(listen.split(",")), int(port)


def _variables(
    profile: Profile, settings: Settings, environ: Mapping[str, str], machine: Machine, data: str
) -> tuple[list[Variable], list[Directory]]:
    """What the profile sets, then what a UID without a home needs; and the folders these name."""
    variables: list[Variable] = []
    folders: list[Directory] = []
    for name, pattern in profile.environment.items():
        if name in environ:
            variables.append(Variable(name=name, value=environ[name], origin="environment"))
            continue
        # Not str.format: a value is data, and may hold braces of its own.
        value = pattern.replace("{data}", data).replace("{cache}", settings.cache)
        variables.append(Variable(name=name, value=value, origin=f"profile {profile.name}"))
        if pattern.startswith("{cache}/"):
            folders.append(Directory(path=value, purpose=name, needs="write"))
    decided = {v.name for v in variables}
    for variable, is_folder in _home(settings.cache, environ, machine):
        if variable.name in decided:
            continue
        variables.append(variable)
        if is_folder:
            folders.append(Directory(path=variable.value, purpose=variable.name, needs="write"))
    return variables, folders


def _home(cache: str, environ: Mapping[str, str], machine: Machine) -> Iterator[tuple[Variable, bool]]:
    """What libraries expect of a user, on the cache volume; True where it names a folder."""
    if not machine.home_writable:
        # An engine gives a UID without a passwd entry HOME=/.
        why = f"{OWN}: no writable home"
        yield Variable(name="HOME", value=f"{cache}/home", origin=why), True
    for name, value in (("XDG_CACHE_HOME", f"{cache}/xdg"), ("MPLCONFIGDIR", f"{cache}/matplotlib")):
        if not environ.get(name):
            yield Variable(name=name, value=value, origin=OWN), True
    if machine.user is None:
        # torch's inductor calls getpass.getuser(), which fails for a UID without a passwd entry.
        why = f"{OWN}: UID {machine.uid} has no name"
        for name in ("USER", "LOGNAME"):
            if not environ.get(name):
                yield Variable(name=name, value="comfy", origin=why), False


def _directories(data: str, cache: str) -> list[Directory]:
    return [
        Directory(path=f"{data}/models", purpose="models", needs="exist"),
        Directory(path=f"{data}/input", purpose="input", needs="exist"),
        Directory(path=f"{data}/custom_nodes", purpose="custom nodes", needs="exist"),
        Directory(path=f"{data}/output", purpose="output", needs="write"),
        Directory(path=f"{data}/temp", purpose="previews", needs="write"),
        Directory(path=f"{data}/user", purpose="settings, workflows, database", needs="write"),
        Directory(path=cache, purpose="caches", needs="write"),
    ]
