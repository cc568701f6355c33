"""No combination of strings, in the environment, the file or the arguments, gives a traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from realimages import FALLBACK, GOLDEN, PINNED, profile_json, targets
from recorded import Recorded

from comfyrun import advice, cli, foreign
from comfyrun import settings as settings_module
from comfyrun.layout import Layout


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Layout]:
    """Each target's /etc/comfyrun, for both ComfyUIs."""
    found = {}
    for target in targets():
        for version in (PINNED, FALLBACK):
            etc = tmp_path_factory.mktemp("etc")
            (etc / "profile.json").write_text(json.dumps(profile_json(target, version)))
            (etc / "flags.json").write_bytes((GOLDEN / f"flags-{version}.json").read_bytes())
            found[target, version] = Layout(etc=etc)
    return found


NO_GPU = Recorded(programs={}, files={}, devices=[]).system
OTHERS = (
    "HOME",
    "USER",
    "HF_TOKEN",
    "HF_HOME",
    "TRITON_CACHE_DIR",
    "PYTHONPATH",
    "COMFY_SERVICE_HOST",
    "COMFY_X",
)
NAMES = sorted({*settings_module.NAMES, *foreign.NAMES, *(n.name for n in advice.NEVER), *OTHERS})
WORDS = re.findall(
    r"\S+",
    """
on off auto none low high sage flash ck sdpa text json default classic 0 1 8188 65535 65536 -1 0.5 1e9 nan
:0:0 * http://localhost:1 tcp://10.0.0.7:8188 0.0.0.0 ::1 /data /cache /mnt/models:/mnt/b /x.yaml hf_0123456789ab
--cpu --gpu-only --highvram --lowvram --port --listen --reserve-vram --fast --verbose --preview-method
--base-directory --user-directory --output-directory --tls-keyfile --tls-certfile --use-sage-attention
--use-ck-attention --extra-model-paths-config --database-url --disable-metadata --whitelist-custom-nodes
--enable-cors-header --feature-flag --front-end-root --cache-ram -- - = \\ ' "
""",
)
PIECES = st.sampled_from([*WORDS, " ", "\n", "\0", "\udcff"])
# What a variable can hold: any bytes but NUL, as Python shows them, and NUL for good measure.
VALUES = st.one_of(
    PIECES,
    st.lists(PIECES, max_size=6).map(" ".join),
    st.lists(PIECES, max_size=6).map("".join),
    st.text(),
    st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
KEYS = st.one_of(st.sampled_from(NAMES), st.text(max_size=6).map("COMFY_{}".format))
LINES = st.one_of(
    st.tuples(KEYS, VALUES).map("=".join),
    st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]}='{pair[1]}'"),
    st.text(),
)


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    target=st.sampled_from(targets()),
    version=st.sampled_from([PINNED, FALLBACK]),
    environ=st.dictionaries(KEYS, VALUES, max_size=6),
    lines=st.one_of(st.none(), st.lists(LINES, max_size=4)),
    arguments=st.lists(st.one_of(PIECES, st.text()), max_size=5),
    how=st.sampled_from(["--print", "--json"]),
)
@example(
    target="ada",
    version=PINNED,
    environ={"COMFY_ARGS": "--port " + "9" * 5000},
    lines=["COMFY_RESERVE_VRAM=" + "9" * 5000],
    arguments=[],
    how="--json",
)
@example(
    target="h100",
    version=PINNED,
    environ={"COMFY_MODELS": "/proc/self:/dev:/root:/nowhere"},
    lines=None,
    arguments=[],
    how="--print",
)
@example(
    target="h100", version=PINNED, environ={}, lines=["HOME=/\udcff"], arguments=["--listen="], how="--print"
)
def test_no_traceback(
    layouts: dict[tuple[str, str], Layout],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
    version: str,
    environ: dict[str, str],
    lines: list[str] | None,
    arguments: list[str],
    how: str,
) -> None:
    path = tmp_path / "comfyrun.env"
    path.unlink(missing_ok=True)
    if lines is not None:
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        environ = {**environ, "COMFY_DATA": str(tmp_path)}
    code = cli.main(["serve", how, *arguments], environ, layouts[target, version], NO_GPU)
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 0) == bool(out)
    assert (code == 2) == bool(err)
    assert "Traceback" not in err
    if code == 0 and how == "--json" and "--print" not in arguments:
        assert json.loads(out)["schema"] == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["schema", "target", "kernels", "tiers", "profiles", "nodes", "cautions", "siblings", "torch"]
        ),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(
                        ["name", "flags", "at_least_gb", "imports", "key", "default", "environment"]
                    ),
                    inner,
                    max_size=3,
                ),
            ),
            max_leaves=8,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_profile_json_gives_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object]
) -> None:
    (tmp_path / "profile.json").write_text(json.dumps({**profile_json("ada"), **changes}))
    (tmp_path / "flags.json").write_bytes((GOLDEN / f"flags-{PINNED}.json").read_bytes())
    assert cli.main(["--print"], {}, Layout(etc=tmp_path), NO_GPU) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
