"""Every COMFY_ variable, the file, other images' names; with the flags of the real ComfyUIs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from realimages import FALLBACK, PINNED, ROOT, image, table
from syntheticui import MACHINE

from comfyrun import settings
from comfyrun.envfile import EnvFile
from comfyrun.errors import ConfigError, KernelError
from comfyrun.launch import Launch, plan
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def start(
    target: str = "h100",
    *arguments: str,
    version: str = PINNED,
    file: Mapping[str, str] | None = None,
    machine: Any = MACHINE,
    memory: float | None = None,
    display: bool = False,
    dropped: Mapping[str, str] | None = None,
    **env: str,
) -> Launch:
    return plan(
        image=image(target, version),
        table=table(version),
        layout=Layout(),
        environ=env,
        arguments=arguments,
        machine=machine,
        file=None if file is None else EnvFile(path="/data/comfyrun.env", variables=file),
        memory=memory,
        display=display,
        dropped=dropped,
    )


def flags(launch: Launch) -> dict[str, tuple[str, str]]:
    return {o.name: (" ".join(o.values), o.origin) for o in launch.options}


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        start(*arguments, **options)
    return str(caught.value)


# --- each variable -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "flag", "given"),
    [
        ("COMFY_PORT", "09000", "--port", "9000"),
        ("COMFY_LISTEN", "::1,127.0.0.1", "--listen", "::1,127.0.0.1"),
        ("COMFY_DATA", "/srv", "--base-directory", "/srv"),
        ("COMFY_ATTENTION", "sage", "--use-sage-attention", ""),
        ("COMFY_ATTENTION", "flash", "--use-flash-attention", ""),
        ("COMFY_ATTENTION", "CK", "--use-ck-attention", ""),
        ("COMFY_ATTENTION", "sdpa", "--use-pytorch-cross-attention", ""),
        ("COMFY_MEMORY", "low", "--disable-smart-memory", ""),
        ("COMFY_MEMORY", "low", "--lowvram", ""),
        ("COMFY_MEMORY", "high", "--highvram", ""),
        ("COMFY_RESERVE_VRAM", "1.5", "--reserve-vram", "1.5"),
        ("COMFY_RESERVE_VRAM", "0", "--reserve-vram", "0"),
        ("COMFY_PREVIEW", "taesd", "--preview-method", "taesd"),
        ("COMFY_CORS", "http://localhost:3000", "--enable-cors-header", "http://localhost:3000"),
        ("COMFY_MAX_UPLOAD", "250", "--max-upload-size", "250"),
        ("COMFY_METADATA", "off", "--disable-metadata", ""),
        ("COMFY_OFFLINE", "yes", "--disable-api-nodes", ""),
        ("COMFY_NODES", "0", "--disable-all-custom-nodes", ""),
        ("COMFY_NODES", "0", "--whitelist-custom-nodes", "dgls queuefront"),
    ],
)
def test_a_variable_becomes_a_flag(name: str, value: str, flag: str, given: str) -> None:
    launch = start(**{name: value})
    assert flags(launch)[flag] == (given, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COMFY_ATTENTION", "auto"),
        ("COMFY_MEMORY", "auto"),
        ("COMFY_METADATA", "on"),
        ("COMFY_OFFLINE", "off"),
        ("COMFY_NODES", "True"),
        ("COMFY_STRICT", "1"),
        ("COMFY_LOG", "json"),
        ("COMFY_CACHE", "/cache"),
        ("COMFY_MODELS", ""),
    ],
)
def test_what_changes_no_flag(name: str, value: str) -> None:
    assert flags(start(**{name: value})) == flags(start())


def test_what_others_ask_the_launch_for() -> None:
    launch = start(COMFY_STRICT="on", COMFY_LOG="JSON", COMFY_NODES="off", COMFY_CACHE="/c/")
    assert (launch.strict, launch.log, launch.nodes, launch.cache) == (True, "json", False, "/c")
    launch = start()
    assert (launch.strict, launch.log, launch.nodes, launch.models) == (False, "text", True, ())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COMFY_ATTENTION", "saeg", "'saeg' is none of auto, sage, flash, ck, sdpa (did you mean sage?)"),
        ("COMFY_MEMORY", "medium", "'medium' is none of auto, low, high"),
        ("COMFY_RESERVE_VRAM", "-1", "'-1' is not a number like 2 or 0.5"),
        ("COMFY_RESERVE_VRAM", "nan", "is not a number like 2 or 0.5"),
        ("COMFY_RESERVE_VRAM", "1e9", "is not a number like 2 or 0.5"),
        ("COMFY_PREVIEW", "yes", "--preview-method 'yes' is none of none, auto, latent2rgb, taesd"),
        ("COMFY_PREVIEW", "--cpu", "--preview-method '--cpu' is none of"),
        ("COMFY_STRICT", "2", "'2' is neither on nor off"),
        ("COMFY_NODES", "none", "'none' is neither on nor off"),
        ("COMFY_CORS", "localhost", "'localhost' is not an origin"),
        ("COMFY_CORS", "http://x/\r\nSet-Cookie: a", "is not an origin"),
        ("COMFY_MAX_UPLOAD", "0", "0 would let nothing in"),
        ("COMFY_MAX_UPLOAD", "100M", "'100M' is not a number"),
        ("COMFY_LOG", "xml", "'xml' is none of text, json"),
        ("COMFY_TLS_KEY", "key.pem", "'key.pem' is not an absolute path"),
        ("COMFY_MODELS", "models", "'models' is not an absolute path"),
        ("COMFY_MODELS", "/a:/b\tc", "cannot be written into a YAML file"),
        ("COMFY_DATA", "/", "'/' is the root, where nothing belongs: name a folder in it"),
        ("COMFY_DATA", "/a/../b", "'/a/../b' holds .., which may lead anywhere"),
        ("COMFY_ARGS", "--fast \\", "a backslash stands at the end"),
    ],
)
def test_a_wrong_value_is_one_message(name: str, value: str, message: str) -> None:
    text = refused(**{name: value})
    assert text.startswith(f"{name}: ")
    assert message in text
    assert "\n" not in text


def test_every_setting_is_documented() -> None:
    from golden.make import RUNNING, with_settings

    from comfyrun import cli

    assert RUNNING.read_text() == with_settings(RUNNING.read_text()), (
        "python tests/unit/comfyrun/golden/make.py"
    )
    shown = cli.usage(Layout())
    assert all(f"  {variable}  " in shown or f"  {variable} " in shown for variable in settings.NAMES)


# --- order -------------------------------------------------------------------------------------


def test_profile_file_environment_command_line() -> None:
    file = {"COMFY_RESERVE_VRAM": "1", "COMFY_ARGS": "--preview-size 1", "COMFY_PORT": "1111"}
    in_file = "in /data/comfyrun.env"
    assert flags(start("gb10"))["--reserve-vram"] == ("8", "profile default")
    given = flags(start("gb10", file=file))
    assert given["--reserve-vram"] == ("1", f"COMFY_RESERVE_VRAM {in_file}")
    assert given["--preview-size"] == ("1", f"COMFY_ARGS {in_file}")
    given = flags(start("gb10", file=file, COMFY_RESERVE_VRAM="2", COMFY_ARGS="--preview-size 2"))
    assert given["--reserve-vram"] == ("2", "COMFY_RESERVE_VRAM")
    assert given["--preview-size"] == ("2", "COMFY_ARGS")
    assert given["--port"] == ("1111", f"COMFY_PORT {in_file}")
    given = flags(start("gb10", "--reserve-vram", "3", file=file, COMFY_RESERVE_VRAM="2"))
    assert given["--reserve-vram"] == ("3", "command line")


def test_a_variable_wins_over_the_files_arguments() -> None:
    assert start(file={"COMFY_ARGS": "--port 1"}, COMFY_PORT="2").port == 2
    assert start(file={"COMFY_ARGS": "--port 1", "COMFY_PORT": "2"}).port == 1
    launch = start(file={"COMFY_ARGS": "--base-directory /a"}, COMFY_DATA="/b")
    assert launch.workdir == "/b"


def test_on_takes_back_what_a_lower_place_switched_off() -> None:
    file = {"COMFY_ARGS": "--disable-metadata --disable-api-nodes --disable-all-custom-nodes"}
    assert "--disable-metadata" in flags(start(file=file))
    given = flags(start(file=file, COMFY_METADATA="on", COMFY_OFFLINE="off", COMFY_NODES="on"))
    assert not {"--disable-metadata", "--disable-api-nodes", "--disable-all-custom-nodes"} & given.keys()


def test_an_empty_variable_leaves_the_files_value() -> None:
    assert start(file={"COMFY_PORT": "9"}, COMFY_PORT="").port == 9


def test_the_profile_comes_from_the_file_too() -> None:
    launch = start("gb10", file={"COMFY_PROFILE": "classic"})
    assert (launch.profile, launch.profile_origin) == ("classic", "COMFY_PROFILE in /data/comfyrun.env")


def test_every_mistake_of_file_and_environment_at_once() -> None:
    text = refused(file={"COMFY_PROT": "1", "COMFY_DATA": "/x"}, COMFY_PORT="0", COMFY_ATENTION="sage")
    assert text.splitlines() == [
        "COMFY_DATA in /data/comfyrun.env: this file lies in the data directory; set it as a variable instead",
        "COMFY_PROT in /data/comfyrun.env: comfyrun knows no such variable (did you mean COMFY_PORT?)",
        "COMFY_ATENTION: comfyrun knows no such variable (did you mean COMFY_ATTENTION?)",
        "COMFY_PORT: '0' is not a port: a whole number from 1 to 65535",
    ]


def test_the_files_other_variables_are_comfyuis() -> None:
    launch = start(file={"HF_TOKEN": "x", "HF_HOME": "/f", "OMP_NUM_THREADS": "3"}, OMP_NUM_THREADS="4")
    assert launch.environment["HF_TOKEN"] == "x"
    shown = {v.name: (v.value, v.origin) for v in launch.variables}
    assert shown["HF_HOME"] == ("/f", "/data/comfyrun.env")
    assert shown["OMP_NUM_THREADS"] == ("4", "environment")
    assert launch.environment["OMP_NUM_THREADS"] == "4"


def test_a_home_in_the_file() -> None:
    from syntheticui import STRANGER

    launch = start(file={"HOME": "/data/home", "USER": "me"}, machine=STRANGER)
    assert (launch.environment["HOME"], launch.environment["USER"]) == ("/data/home", "me")


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/data/comfyrun.env"),
        ({"COMFY_DATA": "/x/"}, "/x/comfyrun.env"),
        ({"BASE_DIRECTORY": "/basedir"}, "/basedir/comfyrun.env"),
        ({"COMFY_DATA": "x\0"}, None),
    ],
)
def test_where_the_file_is(environ: dict[str, str], path: str | None) -> None:
    assert settings.file_path(environ) == path


# --- attention ---------------------------------------------------------------------------------


def test_the_attention_that_will_be_used() -> None:
    assert start().attention == "sage"
    assert start(COMFY_ATTENTION="ck").attention == "ck"
    assert start(COMFY_ARGS="--use-quad-cross-attention").attention == "quad"
    assert start("cpu").attention == "sdpa"
    assert start(version=FALLBACK).attention == "sdpa"


def test_ck_where_it_does_not_exist() -> None:
    assert refused(version=FALLBACK, COMFY_ATTENTION="ck") == (
        "COMFY_ATTENTION: ComfyUI 0.3.75 has no --use-ck-attention, so ck is not possible; what is: auto, sage, flash, sdpa"
    )


@pytest.mark.parametrize("word", ["sage", "flash"])
def test_a_kernel_that_is_not_in_the_image(word: str) -> None:
    text = refused("cpu", COMFY_ATTENTION=word)
    assert f"is not in this image (cpu), so {word} is not possible; what is: auto, ck, sdpa" in text


def test_sage_on_the_fallback_is_possible_with_a_warning() -> None:
    launch = start(version=FALLBACK, COMFY_ATTENTION="sage")
    assert launch.attention == "sage"
    assert launch.notes[0].startswith(
        "--use-sage-attention (COMFY_ATTENTION): this ComfyUI hands attention masks"
    )


def test_attention_with_cpu() -> None:
    launch = start("h100", "--cpu", COMFY_ATTENTION="flash")
    assert "--use-flash-attention" not in flags(launch)
    assert "--cpu drops --use-flash-attention (COMFY_ATTENTION): it needs a GPU" in launch.notes


@pytest.mark.parametrize("environ", [{}, {"COMFY_ATTENTION": "sage"}, {"COMFY_ARGS": "--use-sage-attention"}])
def test_a_dropped_kernel_gives_way_to_sdpa_with_one_note(environ: dict[str, str]) -> None:
    launch = start(dropped={"sageattention": "it crashes: SIGSEGV"}, **environ)
    assert launch.attention == "sdpa"
    assert flags(launch)["--use-pytorch-cross-attention"] == ("", "comfyrun: sageattention did not pass")
    (note,) = launch.notes
    assert "sageattention did not pass its check: it crashes: SIGSEGV" in note


def test_a_dropped_kernel_that_nobody_asked_for() -> None:
    launch = start(dropped={"flash-attn": "no"})
    assert (launch.attention, launch.notes) == ("sage", ())


def test_a_dropped_kernel_is_an_error_when_strict() -> None:
    with pytest.raises(KernelError, match="COMFY_STRICT forbids") as caught:
        start(dropped={"sageattention": "no"}, COMFY_STRICT="1")
    assert caught.value.exit_code != ConfigError.exit_code


# --- memory and tiers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "tier"),
    [
        (None, None),
        (0.25, None),
        (7.99, "12gb"),
        (11.99, "12gb"),
        (19.99, "12gb"),
        (23.99, "24gb"),
        (44.9, "48gb"),
    ],
)
def test_tiers_pick_themselves(memory: float | None, tier: str | None) -> None:
    assert start("ada", memory=memory).tier == tier


def test_a_tier_adds_flags_only_with_a_display() -> None:
    assert "--reserve-vram" not in flags(start("ada", memory=12))
    assert flags(start("ada", memory=12, display=True))["--reserve-vram"] == ("1", "tier 12gb")
    assert flags(start("ada", memory=12, display=True, COMFY_RESERVE_VRAM="2"))["--reserve-vram"][0] == "2"
    assert "--reserve-vram" not in flags(start("ada", memory=24, display=True))
    classic = start("ada", memory=12, display=True, COMFY_PROFILE="classic")
    assert classic.tier is None
    assert "--reserve-vram" not in flags(classic)


def test_low_memory_replaces_highvram_of_classic() -> None:
    launch = start("ada", COMFY_PROFILE="classic", COMFY_MEMORY="low")
    assert "--highvram" not in flags(launch)
    assert flags(launch)["--preview-method"] == ("none", "COMFY_MEMORY")
    assert "--lowvram (COMFY_MEMORY) replaces --highvram (profile classic)" in launch.notes


def test_a_preview_asked_for_wins_over_low_memory() -> None:
    given = flags(start(COMFY_MEMORY="low", COMFY_PREVIEW="auto"))
    assert given["--preview-method"] == ("auto", "COMFY_PREVIEW")


def test_high_memory_says_what_it_costs() -> None:
    assert any("switches DynamicVRAM off" in note for note in start(COMFY_MEMORY="high").notes)
    assert any("share one pool" in note for note in start("gb10", COMFY_MEMORY="high").notes)
    assert not any("DynamicVRAM" in note for note in start(version=FALLBACK, COMFY_MEMORY="high").notes)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("h100", "--cpu"), {}),
        (("h100",), {"COMFY_ARGS": "--cpu"}),
        (("h100",), {"file": {"COMFY_ARGS": "--cpu"}}),
        (("cpu",), {}),
    ],
)
def test_memory_never_takes_cpu_away(arguments: tuple[str, ...], options: dict[str, Any]) -> None:
    launch = start(*arguments, COMFY_MEMORY="low", **options)
    assert "--cpu" in flags(launch)
    assert not {"--lowvram", "--disable-smart-memory"} & flags(launch).keys()
    assert "COMFY_MEMORY means nothing without a GPU" in launch.notes


# --- https -------------------------------------------------------------------------------------


def test_https() -> None:
    launch = start(COMFY_TLS_CERT="/run/secrets/cert", COMFY_TLS_KEY="/run/secrets/key")
    assert launch.tls
    assert [(f.path, f.origin) for f in launch.files] == [
        ("/run/secrets/cert", "COMFY_TLS_CERT"),
        ("/run/secrets/key", "COMFY_TLS_KEY"),
    ]


@pytest.mark.parametrize("name", ["COMFY_TLS_CERT", "COMFY_TLS_KEY"])
def test_half_of_https_is_refused(name: str) -> None:
    assert "would serve plain http: set both COMFY_TLS_CERT and COMFY_TLS_KEY" in refused(**{name: "/x"})


def test_any_web_page_is_worth_a_note() -> None:
    assert any("any page" in note for note in start(COMFY_CORS="*").notes)
    assert any("any page" in note for note in start("h100", "--enable-cors-header").notes)
    assert start(COMFY_CORS="https://a.example").notes == ()


# --- directories -------------------------------------------------------------------------------


def test_directories_elsewhere_are_never_made() -> None:
    launch = start(
        "h100", "--output-directory", "/mnt/out", "--input-directory", "in", "--user-directory", "/mnt/user"
    )
    found = {d.purpose: (d.path, d.given) for d in launch.directories}
    assert found["output"] == ("/mnt/out", "command line")
    assert found["input"] == ("/data/in", None)
    assert found["settings, workflows, database"] == ("/mnt/user", "command line")
    assert flags(launch)["--database-url"] == ("sqlite:////mnt/user/comfyui.db", "command line")
    assert flags(launch)["--base-directory"] == ("/data", "default")


# --- other images' names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "flag", "given"),
    [
        ("BASE_DIRECTORY", "/basedir", "--base-directory", "/basedir"),
        ("COMFYUI_PORT", "7777", "--port", "7777"),
        ("COMFYUI_ARGS", "--preview-size 9", "--preview-size", "9"),
        ("CLI_ARGS", "--preview-size 9", "--preview-size", "9"),
        ("COMFYUI_FLAGS", "--preview-size 9", "--preview-size", "9"),
        ("COMFYUI_PORT_HOST", "7777", "--port", "7777"),
        ("COMFY_CMDLINE_EXTRA", "--preview-size 9", "--preview-size", "9"),
    ],
)
def test_other_images_names_are_understood(name: str, value: str, flag: str, given: str) -> None:
    launch = start(**{name: value})
    assert flags(launch)[flag] == (given, name)
    assert launch.notes[0].startswith(f"{name} is understood as COMFY_")


def test_model_base_path_is_more_models() -> None:
    launch = start(MODEL_BASE_PATH="/mnt/m")
    assert launch.models == ("/mnt/m",)
    assert launch.settings.origin("models") == "MODEL_BASE_PATH"


def test_ours_wins_over_theirs() -> None:
    launch = start(COMFYUI_PORT="1", COMFY_PORT="2")
    assert launch.port == 2
    assert launch.notes == ("COMFYUI_PORT is ignored: COMFY_PORT is set",)


def test_a_wrong_value_under_their_name() -> None:
    assert refused(COMFYUI_PORT="x").startswith("COMFYUI_PORT: 'x' is not a port")
    assert refused(CLI_ARGS="--fast fp8 'secret").startswith("CLI_ARGS: a quote")
    assert "secret" not in refused(CLI_ARGS="--fast 'secret")


@pytest.mark.parametrize(
    ("environ", "note"),
    [
        ({"WANTED_UID": "1024", "WANTED_GID": "1000"}, "WANTED_UID is ignored: the container stays the user"),
        ({"WANTED_UID": "1", "WANTED_GID": "2"}, "WANTED_UID, WANTED_GID are ignored"),
        ({"SECURITY_LEVEL": "weak"}, "SECURITY_LEVEL is ignored: it is ComfyUI-Manager's"),
        (
            {"USE_UV": "true", "TORCH_LOCK": "x"},
            "USE_UV, TORCH_LOCK are ignored: nothing is installed at a start",
        ),
        ({"COMFY_CMDLINE_BASE": "python main.py"}, "COMFY_CMDLINE_BASE is ignored"),
        ({"USE_NEW_MANAGER": "true"}, "--enable-manager"),
        (
            {"INPUT_DIR": "/i", "OUTPUT_DIR": "/o"},
            "INPUT_DIR, OUTPUT_DIR are ignored: mount the folder at /data/input",
        ),
        ({"FORCE_CHOWN": "yes"}, "--user"),
    ],
)
def test_other_images_names_are_answered(environ: dict[str, str], note: str) -> None:
    (found,) = start(**environ).notes
    assert note in found


def test_who_asks_for_the_uid_that_runs_hears_nothing() -> None:
    assert start(WANTED_UID="1000", WANTED_GID="1000").notes == ()


def test_a_service_called_comfyui() -> None:
    launch = start(COMFYUI_PORT="tcp://10.0.0.7:8188", COMFY_PORT_8188_TCP="tcp://10.0.0.7:8188")
    assert launch.port == 8188
    assert len(launch.notes) == 1


# --- variables that do harm --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_CACHE_DISABLE", "1"),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),
        ("CUBLAS_WORKSPACE_CONFIG", ":0:0"),
        ("CUDA_LAUNCH_BLOCKING", "1"),
        ("CUDA_DISABLE_PTX_JIT", "1"),
    ],
)
def test_never(name: str, value: str) -> None:
    for options in ({name: value}, {"file": {name: value}}):
        (note,) = start(**options).notes  # type: ignore[arg-type]
        assert note.startswith(f"{name}={value} does harm, unset it: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("CUDA_CACHE_DISABLE", "0"), ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"), ("CUDA_LAUNCH_BLOCKING", "")],
)
def test_harmless_values(name: str, value: str) -> None:
    assert start(**{name: value}).notes == ()


def test_classic_says_what_it_sets_once() -> None:
    (note,) = start("gb10", COMFY_PROFILE="classic").notes
    assert "CUDA_CACHE_DISABLE, PYTORCH_NO_CUDA_MEMORY_CACHING, CUBLAS_WORKSPACE_CONFIG" in note
    notes = start("gb10", COMFY_PROFILE="classic", CUDA_CACHE_DISABLE="0").notes
    assert "CUDA_CACHE_DISABLE" not in notes[0]


# --- the documents' environment and flags, to the letter -----------------------------------------


def between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0]


SPARK = (
    ("CUDA_CACHE_DISABLE", "1"),
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
    ("CUDA_DEVICE_MAX_COPY_CONNECTIONS", "4"),
    ("CUDA_MODULE_LOADING", "EAGER"),
    ("CUDA_MANAGED_FORCE_DEVICE_ALLOC", "1"),
    ("OMP_NUM_THREADS", "20"),
    ("CUBLAS_WORKSPACE_CONFIG", ":0:0"),
)


def own(target: str) -> tuple[dict[str, str], Sequence[str]]:
    built = image(target)
    shared = image("h100").profiles["classic"].environment
    classic = built.profiles["classic"]
    return {k: v for k, v in classic.environment.items() if k not in shared}, classic.tokens


def test_classic_is_the_documents() -> None:
    environment, tokens = own("gb10")
    assert environment == dict(SPARK)
    assert " ".join(tokens) == (
        "--use-sage-attention --fp16-unet --fp16-vae --fp16-text-enc --force-fp16 --dont-upcast-attention "
        "--disable-pinned-memory"
    )
    environment, tokens = own("ada")
    assert environment == {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "75",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "8G",
        "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512",
    }
    assert " ".join(tokens) == "--highvram --use-pytorch-cross-attention --preview-method none"
    assert own("h100") == ({}, ())


@pytest.mark.skipif(
    not (ROOT.parent / "shared" / "seeds").is_dir(), reason="the source documents are not here"
)
def test_classic_stands_in_the_documents() -> None:
    seeds = Path(ROOT.parent / "shared" / "seeds")
    spark = (seeds / "dgx-spark-comfyui.txt").read_text()
    block = between(spark, "CUDA Environment (Tuned", "**Why These Settings Matter")
    assert dict(re.findall(r'^([A-Z_]+): "([^"]*)"', block, re.MULTILINE)) == dict(SPARK)
    debian = (seeds / "debian-rtx4070-comfyui.txt").read_text()
    for name, value in own("ada")[0].items():
        assert f"export {name}={value}" in debian
    assert "--highvram --use-pytorch-cross-attention" in debian
    assert "--highvram --preview-method none" in debian


# --- what an image without GPU code refuses -----------------------------------------------------


@pytest.mark.parametrize("flag", ["--gpu-only", "--highvram", "--lowvram", "--novram"])
def test_a_flag_that_needs_a_gpu(flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        start("cpu", flag)
    assert str(caught.value).startswith(
        f"command line: {flag} needs a GPU, and this image (cpu) has no GPU code: leave it out, or use the image for your "
        "GPU (comfyui:"
    )


def test_the_last_word_counts_there_too() -> None:
    assert "--cpu" in flags(start("cpu", "--cpu", COMFY_ARGS="--gpu-only"))


# --- compiled code of nodes ---------------------------------------------------------------------


def test_nodes_are_compiled_once_though_the_image_forbids_it() -> None:
    assert start(PYTHONDONTWRITEBYTECODE="1").environment["PYTHONDONTWRITEBYTECODE"] == ""
    assert "PYTHONDONTWRITEBYTECODE" not in start().environment


def test_a_folder_that_the_parser_insists_on() -> None:
    (found,) = [d for d in start("h100", "--front-end-root", "/srv/ui").directories if d.given]
    assert (found.path, found.needs, found.given) == ("/srv/ui", "exist", "command line")
