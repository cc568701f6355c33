"""What profile, settings and arguments ask of ComfyUI, one over the other, as one list of flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun import settings as settings_module
from comfyrun.errors import ConfigError, KernelError
from comfyrun.flagtable import FlagTable, Option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from comfyrun.layout import Layout
    from comfyrun.profile import Image, Profile, Tier
    from comfyrun.settings import Settings

OWN = "comfyrun"
COMMAND_LINE = "command line"

# What every ComfyUI must know for comfyrun to start it.
REQUIRED_FLAGS = (
    "--base-directory",
    "--extra-model-paths-config",
    "--listen",
    "--port",
    "--disable-auto-launch",
)


@dataclass(frozen=True)
class Attention:
    flag: str
    kernel: str | None
    """The package that computes it; None for what is in torch."""
    compiled: bool = False
    """Whether that package is one of the image's kernels."""


ATTENTION: Mapping[str, Attention] = {
    "sage": Attention("--use-sage-attention", "sageattention", compiled=True),
    "flash": Attention("--use-flash-attention", "flash-attn", compiled=True),
    "ck": Attention("--use-ck-attention", "comfy-kitchen"),
    "sdpa": Attention("--use-pytorch-cross-attention", None),
}

# With --cpu these find no device: ComfyUI would exit, or fail and fall back at every call.
NEEDS_GPU = tuple(a.flag for a in ATTENTION.values() if a.kernel)

_MEMORY = {
    # --lowvram says it to a ComfyUI without DynamicVRAM, and takes the place of --highvram; the second works in both.
    "low": ("--lowvram", "--disable-smart-memory", "--preview-method=none"),
    "high": ("--highvram",),
}
_NOT_DYNAMIC = ("--highvram", "--gpu-only", "--novram")
_FLAGS = {
    "data": "--base-directory",
    "listen": "--listen",
    "port": "--port",
    "reserve_vram": "--reserve-vram",
    "preview": "--preview-method",
    "cors": "--enable-cors-header",
    "max_upload": "--max-upload-size",
    "tls_cert": "--tls-certfile",
    "tls_key": "--tls-keyfile",
}
# The switch's flag under any of its names, and the value that asks for it.
_SWITCHES = {
    "metadata": (("--disable-metadata",), False),
    "offline": (("--offline", "--disable-api-nodes"), True),
    "nodes": (("--disable-all-custom-nodes",), False),
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Flags from one place; `without` takes flags of lower layers away, by any of their names."""

    options: tuple[Option, ...] = ()
    without: tuple[str, ...] = ()
    setting: str | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that was asked for, lowest layer first."""

    layers: tuple[Layer, ...]
    typed: frozenset[str]
    """The origins of flags that somebody wrote as flags."""

    @property
    def options(self) -> list[Option]:
        return [option for layer in self.layers for option in layer.options]


def asked(
    *,
    image: Image,
    profile: Profile,
    tier: Tier | None,
    display: bool,
    table: FlagTable,
    settings: Settings,
    arguments: Sequence[str],
) -> Asked:
    """Raises ConfigError with every mistake."""
    mistakes: list[str] = []

    def parse(tokens: Sequence[str], origin: str) -> tuple[Option, ...]:
        options, wrong = table.parse(tokens, origin)
        mistakes.extend(wrong)
        return tuple(options)

    layers = [Layer(options=parse(profile.tokens, f"profile {profile.name}"))]
    if tier is not None:
        layers.append(Layer(options=parse(tier.tokens(display=display), f"tier {tier.name}")))
    typed = {COMMAND_LINE}
    for in_file in (True, False):
        given = {name: g.origin for name, g in settings.given.items() if g.in_file == in_file}
        for name in settings_module.SETTINGS:
            if name not in given or name == "args":
                continue
            try:
                tokens, without = _words(name, settings, image, table)
            except ConfigError as error:
                mistakes += [f"{given[name]}: {message}" for message in error.messages]
                continue
            layers.append(Layer(options=parse(tokens, given[name]), without=without, setting=name))
        if "args" in given:
            typed.add(given["args"])
            layers.append(Layer(options=parse(settings.args, given["args"])))
    layers.append(Layer(options=parse(arguments, COMMAND_LINE)))
    if mistakes:
        raise ConfigError(*mistakes)
    return Asked(layers=tuple(layers), typed=frozenset(typed))


def _words(
    name: str, settings: Settings, image: Image, table: FlagTable
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A setting as a command line, and the flags it takes away."""
    value = getattr(settings, name)
    if name in _FLAGS:
        return (f"{_FLAGS[name]}={value}",), ()
    if name in _SWITCHES:
        names, when = _SWITCHES[name]
        if value != when:
            return (), names
        baked = ("--whitelist-custom-nodes", *image.nodes) if name == "nodes" and image.nodes else ()
        return (next((n for n in names if n in table), names[0]), *baked), ()
    if name == "memory":
        return _MEMORY.get(value, ()), ()
    if name == "attention" and value != "auto":
        return (_attention(value, image, table),), ()
    return (), ()


def _attention(word: str, image: Image, table: FlagTable) -> str:
    found = ATTENTION[word]
    possible = ", ".join(w for w, a in ATTENTION.items() if a.flag in table and _has(image, a))
    if found.flag not in table:
        raise ConfigError(
            f"ComfyUI {image.comfyui} has no {found.flag}, so {word} is not possible; what is: auto, {possible}"
        )
    if not _has(image, found):
        raise ConfigError(
            f"{found.kernel} is not in this image ({image.target}), so {word} is not possible; what is: auto, {possible}"
        )
    return found.flag


def _has(image: Image, attention: Attention) -> bool:
    return not attention.compiled or image.kernel(str(attention.kernel)) is not None


def own_options(
    table: FlagTable,
    layout: Layout,
    *,
    data: tuple[str, str] = (settings_module.Settings.data, "default"),
    user: tuple[str, str] | None = None,
    listen: tuple[str, str] = (settings_module.Settings.listen, "default"),
    folders: Sequence[tuple[str, str, str]] = (),
) -> list[Option]:
    """The flags that every start gets, below those of the profile; a place comes with who named it.

    `folders`: flag, folder, origin of those that are not below `data`.
    """
    folder, origin = user or (f"{data[0]}/user", data[1])
    wanted = [
        *folders,
        ("--base-directory", data[0], data[1]),
        # Else 0.33 and later keep it inside their own read-only code.
        ("--database-url", f"sqlite:///{folder}/comfyui.db", origin),
        ("--extra-model-paths-config", str(layout.extra_model_paths), OWN),
        ("--listen", *listen),
        ("--port", settings_module.Settings.port, "default"),
        ("--disable-auto-launch", None, OWN),
    ]
    return [
        Option(flag=flag, name=name, values=() if value is None else (value,), origin=origin)
        for name, value, origin in wanted
        if (flag := table.get(name)) is not None
    ]


def last(options: Sequence[Option], name: str) -> Option | None:
    """The option that counts, under any of the flag's names."""
    return next((o for o in reversed(options) if name in o.flag.names), None)


def merge(
    table: FlagTable, own: Sequence[Option], given: Asked, image: Image
) -> tuple[list[Option], list[str]]:
    """What is left of all layers, and a note for each flag that gave way. Raises ConfigError for what needs a GPU
    in an image without GPU code.
    """
    cpu = image.cuda is None or last(_overlay(table, own, given.layers, leave="memory")[0], "--cpu")
    notes: list[str] = []
    if cpu:
        notes += [
            f"{layer.options[0].origin} means nothing without a GPU"
            for layer in given.layers
            if layer.setting == "memory" and layer.options
        ]
    options, replaced = _overlay(table, own, given.layers, leave="memory" if cpu else None)
    if image.cuda is None:
        _refuse_gpu(options, table, image)
    options, dropped = _without_gpu(options, given.typed)
    return options, [*notes, *replaced, *dropped, *_doubts(options, table, image)]


def _refuse_gpu(options: Sequence[Option], table: FlagTable, image: Image) -> None:
    """Whatever takes --cpu's place would end in torch's traceback."""
    cpu = table.get("--cpu")
    tags = ", ".join(s.tag for s in image.siblings)
    wrong = [
        f"{o.origin}: {o} needs a GPU, and this image ({image.target}) has no GPU code: leave it out"
        + (f", or use the image for your GPU ({tags})" if tags else "")
        for o in options
        if cpu is not None and table.excludes(o.flag, cpu)
    ]
    if wrong:
        raise ConfigError(*wrong)


def _overlay(
    table: FlagTable, own: Sequence[Option], layers: Sequence[Layer], *, leave: str | None
) -> tuple[list[Option], list[str]]:
    options, notes = list(own), []
    for layer in layers:
        if leave is not None and layer.setting == leave:
            continue
        options = [o for o in options if not set(o.flag.names) & set(layer.without)]
        # One by one: of two settings in one place the later wins, as of two flags.
        options, replaced = table.overlay(options, layer.options)
        notes += replaced
    return options, notes


def _without_gpu(options: Sequence[Option], typed: frozenset[str]) -> tuple[list[Option], list[str]]:
    cpu = last(options, "--cpu")
    # A flag somebody typed beside --cpu stays: ComfyUI says what it thinks of it.
    lost = [o for o in options if cpu and o.name in NEEDS_GPU and o.origin not in typed]
    kept = [o for o in options if o not in lost]
    return kept, [f"--cpu drops {o} ({o.origin}): it needs a GPU" for o in lost]


def _doubts(options: Sequence[Option], table: FlagTable, image: Image) -> Iterator[str]:
    for option in options:
        for name in option.flag.names:
            if name in image.cautions:
                yield f"{option} ({option.origin}): {image.cautions[name]}"
        if option.name in _NOT_DYNAMIC and "--disable-dynamic-vram" in table:
            pool = "; here CPU and GPU share one pool" if image.memory == "unified" else ""
            yield f"{option} ({option.origin}) switches DynamicVRAM off, ComfyUI's own memory management{pool}"
    cors = last(options, "--enable-cors-header")
    if cors and (cors.values or (str(cors.flag.const),))[0] == "*":
        yield f"{cors} ({cors.origin}): any page that a browser shows may then run workflows here"


def fall_back(
    options: Sequence[Option], table: FlagTable, dropped: Mapping[str, str], *, strict: bool
) -> tuple[list[Option], list[str]]:
    """SDPA in the place of each attention whose kernel did not pass. Raises KernelError when that is forbidden."""
    kept: list[Option] = []
    notes: list[str] = []
    mistakes: list[str] = []
    for option in options:
        kernel = next((a.kernel for a in ATTENTION.values() if a.flag == option.name), None)
        if kernel is None or kernel not in dropped:
            kept.append(option)
            continue
        failed = f"{option} ({option.origin}): {kernel} did not pass its check: {dropped[kernel]}"
        mistakes.append(f"{failed}; COMFY_STRICT forbids PyTorch's attention in its place")
        notes.append(
            f"{failed}; PyTorch's attention takes its place, which is slower (COMFY_STRICT=1 makes this an error)"
        )
        sdpa = table.get(ATTENTION["sdpa"].flag)
        if sdpa is not None:
            kept.append(
                Option(flag=sdpa, name=sdpa.names[0], values=(), origin=f"{OWN}: {kernel} did not pass")
            )
    if strict and mistakes:
        raise KernelError(*mistakes)
    return kept, notes


def attention(options: Sequence[Option]) -> str:
    """The word for the attention that ComfyUI will use."""
    words = {a.flag: word for word, a in ATTENTION.items()}
    words |= {f"--use-{word}-cross-attention": word for word in ("split", "quad")}
    return next((words[o.name] for o in reversed(options) if o.name in words), "sdpa")
