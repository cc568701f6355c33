"""The COMFY_ variables. Each is a field of Settings; its variable is COMFY_ and the field's name."""

from __future__ import annotations

import ipaddress
import posixpath
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfyrun import envfile, foreign
from comfyrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfyrun.envfile import EnvFile

PREFIX = "COMFY_"

# Libraries and nodes that ComfyUI loads read these; they are theirs to check.
FOREIGN = ("COMFY_KITCHEN_", "COMFY_AIMDO_", "COMFY_QUEUE_")

# What Kubernetes sets in every pod for a Service whose name begins with `comfy`.
_SERVICE = re.compile(r"_SERVICE_|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9._~:\[\]-]+")
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Given:
    """Where a setting's value comes from."""

    origin: str
    in_file: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    profile: str = "default"
    args: tuple[str, ...] = ()
    port: str = "8188"
    listen: str = "0.0.0.0"  # noqa: S104  (inside a container; what is published decides who reaches it)
    attention: str = "auto"
    memory: str = "auto"
    reserve_vram: str | None = None
    preview: str | None = None
    strict: bool = False
    data: str = "/data"
    cache: str = "/cache"
    models: tuple[str, ...] = ()
    nodes: bool = True
    offline: bool = False
    metadata: bool = True
    cors: str | None = None
    max_upload: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    log: str = "text"
    stop_timeout: str = "8"

    given: Mapping[str, Given] = field(default_factory=dict)
    """By field; what is not in it has its default."""
    others: Mapping[str, Given] = field(default_factory=dict)
    """The file's variables that are no settings, by name."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The file's variables that are no settings: for ComfyUI."""
    notes: tuple[str, ...] = ()

    def origin(self, name: str) -> str:
        return self.given[name].origin if name in self.given else "default"


@dataclass(frozen=True, kw_only=True)
class Setting:
    check: Callable[[str], Any]
    """Reads a value. Raises ValueError."""
    takes: str
    about: str


def variable(name: str) -> str:
    return PREFIX + name.upper()


# --- what each takes ---------------------------------------------------------------------------


def check_port(text: str) -> str:
    """`text`, which must be a port a server can be reached at. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        raise ValueError(f"{text!r} is not a port: a whole number from 1 to {MAX_PORT}")
    return str(int(text))


def check_listen(text: str) -> str:
    """`text`, which must be addresses or host names with commas between. Raises ValueError."""
    for address in text.split(","):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            # Digits and dots only is an address gone wrong, not a host's name.
            if not _HOST_NAME.fullmatch(address) or re.fullmatch(r"[0-9.]+", address):
                raise ValueError(f"{address!r} is neither an IP address nor a host name") from None
    return text


def check_path(text: str) -> str:
    """`text`, which must be an absolute path below the root. Raises ValueError."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path: it has to begin with /")
    if ".." in text.split("/"):
        raise ValueError(f"{text!r} holds .., which may lead anywhere: write the path out")
    if text.strip("/.") == "":
        raise ValueError(f"{text!r} is the root, where nothing belongs: name a folder in it")
    if "\0" in text or "\n" in text:
        raise ValueError(f"{text!r} holds a character that no path can have here")
    return text.rstrip("/")


def _check_models(text: str) -> tuple[str, ...]:
    paths = [check_path(entry) for entry in text.split(":") if entry]
    for path in paths:
        if not path.isprintable():
            raise ValueError(f"{path!r} holds a character that cannot be written into a YAML file")
    return tuple(dict.fromkeys(map(posixpath.normpath, paths)))


def _check_text(text: str) -> str:
    return text


def _check_words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        # The arguments themselves are not shown: a URL in them may hold a password.
        if "escaped" in str(error):
            raise ValueError("a backslash stands at the end: take it away, or double it") from None
        raise ValueError(
            "a quote (\" or ') is opened and not closed: close it, or put a backslash before it"
        ) from None


def _check_number(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number like 2 or 0.5")
    return text


def _check_size(text: str) -> str:
    if float(_check_number(text)) == 0:
        raise ValueError("0 would let nothing in")
    return text


def _check_cors(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not an origin: http://HOST, http://HOST:PORT, or * for any")
    return text


def _check_switch(text: str) -> bool:
    match text.lower():
        case "1" | "on" | "true" | "yes":
            return True
        case "0" | "off" | "false" | "no":
            return False
        case _:
            raise ValueError(f"{text!r} is neither on nor off")


def _one_of(*words: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}{nearest(text, words)}")
        return text.lower()

    return check


_SWITCH = "on, off"
SETTINGS: Mapping[str, Setting] = {
    "profile": Setting(
        check=_check_text, takes="a profile's name", about="what to start with: `default`, `classic`"
    ),
    "args": Setting(check=_check_words, takes="flags, quoted as in a shell", about="ComfyUI's own flags"),
    "port": Setting(check=check_port, takes="1 to 65535", about="where it listens in the container"),
    "listen": Setting(
        check=check_listen,
        takes="addresses, commas between",
        about="on which addresses; what is published decides",
    ),
    "attention": Setting(
        check=_one_of("auto", "sage", "flash", "ck", "sdpa"),
        takes="auto, sage, flash, ck, sdpa",
        about="which attention; auto is the profile's, sdpa PyTorch's own",
    ),
    "memory": Setting(
        check=_one_of("auto", "low", "high"),
        takes="auto, low, high",
        about="low frees the card after each prompt, high keeps models on it and switches DynamicVRAM off",
    ),
    "reserve_vram": Setting(check=_check_number, takes="GB", about="GPU memory to leave to others"),
    "preview": Setting(
        check=_check_text, takes="none, auto, latent2rgb, taesd", about="pictures while a sampler works"
    ),
    "strict": Setting(
        check=_check_switch, takes=_SWITCH, about="an attention kernel that fails its check is an error"
    ),
    "data": Setting(check=check_path, takes="a folder", about="models, input, output, user, custom_nodes"),
    "cache": Setting(check=check_path, takes="a folder", about="what is compiled and downloaded"),
    "models": Setting(
        check=_check_models,
        takes="folders, colons between",
        about="more models, which may be read-only: models folders, whole ComfyUI folders, extra-model-paths files",
    ),
    "nodes": Setting(
        check=_check_switch, takes=_SWITCH, about="off starts without custom nodes; the baked ones stay"
    ),
    "offline": Setting(check=_check_switch, takes=_SWITCH, about="no API nodes, no calls to Hugging Face"),
    "metadata": Setting(
        check=_check_switch, takes=_SWITCH, about="off saves pictures without their workflow"
    ),
    "cors": Setting(check=_check_cors, takes="an origin, or *", about="which web page may call the API"),
    "max_upload": Setting(check=_check_size, takes="MB", about="the largest upload"),
    "tls_cert": Setting(check=check_path, takes="a file", about="with COMFY_TLS_KEY: serve https"),
    "tls_key": Setting(check=check_path, takes="a file", about="with COMFY_TLS_CERT: serve https"),
    "log": Setting(check=_one_of("text", "json"), takes="text, json", about="the form of log lines"),
    "stop_timeout": Setting(
        check=_check_number, takes="seconds", about="for a stop; less than what the engine gives (docker: 10)"
    ),
}
NAMES = frozenset(map(variable, SETTINGS))


def described() -> str:
    """Every variable, a line each."""
    width = max(map(len, NAMES))
    return "\n".join(f"  {variable(n):<{width}}  {s.takes}: {s.about}" for n, s in SETTINGS.items())


# --- reading -----------------------------------------------------------------------------------


def file_path(environ: Mapping[str, str]) -> str | None:
    """Where comfyrun.env is looked for; None when COMFY_DATA is wrong, which `read` will say."""
    data = environ.get(variable("data")) or environ.get("BASE_DIRECTORY") or Settings.data
    try:
        return f"{check_path(data)}/{envfile.NAME}"
    except ValueError:
        return None


def read(environ: Mapping[str, str], file: EnvFile | None = None) -> Settings:
    """The settings in `file` and, over them, in `environ`. Raises ConfigError with every mistake.

    An empty variable counts as unset (compose's `${X:-}` makes those).
    """
    reader = _Reader()
    if file is not None:
        reader.take(file.variables, file.path)
    reader.take(environ, None)
    if reader.mistakes:
        raise ConfigError(*reader.mistakes)
    if reader.ignored:
        reader.notes.append(
            f"ignored, since Kubernetes sets them for a Service of that name: {', '.join(reader.ignored)} "
            "(enableServiceLinks: false in the pod leaves them out)"
        )
    return Settings(
        given=reader.given,
        others=reader.others,
        environment=reader.environment,
        notes=tuple(reader.notes),
        **reader.values,
    )


class _Reader:
    """Takes settings out of several sources; a later one wins."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.given: dict[str, Given] = {}
        self.others: dict[str, Given] = {}
        self.environment: dict[str, str] = {}
        self.mistakes: list[str] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []

    def take(self, source: Mapping[str, str], file: str | None) -> None:
        """`file` is the path of the file that `source` stands in; None for the environment."""
        where = f" in {file}" if file else ""
        for key, text in sorted(source.items()):
            ours = key.startswith(PREFIX) and not key.startswith(FOREIGN)
            if not ours and key not in foreign.UNDERSTOOD:
                if file:
                    self.environment[key] = text
                    self.others[key] = Given(origin=file, in_file=True)
            elif _of_kubernetes(key, text):
                self.ignored.append(key)
            elif key not in NAMES and key not in foreign.NAMES:
                self.mistakes.append(f"{key}{where}: comfyrun knows no such variable{nearest(key, NAMES)}")
            elif text and key in NAMES:
                self._set(key.removeprefix(PREFIX).lower(), key, text, file)
            elif text and key in foreign.UNDERSTOOD:
                self._translate(key, text, source, file)

    def _translate(self, key: str, text: str, source: Mapping[str, str], file: str | None) -> None:
        """A name that users of other images know."""
        name = foreign.UNDERSTOOD[key]
        where = f" in {file}" if file else ""
        if source.get(variable(name)):
            self.notes.append(f"{key}{where} is ignored: {variable(name)} is set")
            return
        self.notes.append(f"{key}{where} is understood as {variable(name)}")
        self._set(name, key, text, file)

    def _set(self, name: str, key: str, text: str, file: str | None) -> None:
        origin = f"{key} in {file}" if file else key
        if file and name == "data":
            self.mistakes.append(
                f"{origin}: this file lies in the data directory; set it as a variable instead"
            )
            return
        try:
            self.values[name] = SETTINGS[name].check(text)
        except ValueError as error:
            self.mistakes.append(f"{origin}: {error}")
        self.given[name] = Given(origin=origin, in_file=file is not None)


def _of_kubernetes(key: str, value: str) -> bool:
    # COMFY_PORT itself is such a variable when the Service is called `comfy`.
    return bool(_SERVICE.search(key)) or ("_PORT" in key and bool(_SERVICE_URL.match(value)))
