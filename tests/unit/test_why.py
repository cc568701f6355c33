from __future__ import annotations

import dataclasses
import json
import re

import pytest
from test_wheelhouse import make_wheel

from imgbuild import __version__, kernelbuild, parts, sources, why
from imgbuild.build import Builder, Options, Outcome
from imgbuild.cli import main
from imgbuild.errors import SelectionError
from imgbuild.history import Recorder, last
from imgbuild.kernels import KernelSource
from imgbuild.lock import Lock, inputs_hash, lock_name, parse_lock, read_requirements
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.settings import Settings
from imgbuild.wheelhouse import Wheelhouse

SECONDS = {"probe": 12.0, "sageattention": 578.0, "flash-attn": 1045.0}
LOG = """\
#1 [h100 venv-torch 1/1] RUN install
#1 DONE 40.0s
#2 [h100 profile 1/1] RUN code
#2 DONE 1.4s
"""


class House:
    """A project that changes, and the builds it has seen."""

    def __init__(self, project, tmp_path):
        self.project, self.work, self.said = project, tmp_path, []
        self.cache = tmp_path / "cache"
        self.store = Wheelhouse(self.cache / "wheelhouse", say=self.said.append)
        (project.entrypoint / "comfyrun").mkdir(parents=True)
        (project.entrypoint / "comfyrun" / "__init__.py").write_text("")

    def builder(self):
        return Builder(
            project=self.project,
            matrix=load_matrix(self.project.images),
            settings=Settings(),
            env={},
            cache=self.cache,
            engine=None,
            say=self.said.append,
            notice=lambda title, lines: self.said.append(title),
        )

    def plan(self, target="h100", **changes):
        matrix = load_matrix(self.project.images)
        return make_plan(self.project, matrix, matrix.select([target])[0], **changes)

    def compile(self, plan):
        for kernel in plan.kernels:
            tag = f"cp313-cp313-linux_{'x86_64' if plan.arch == 'amd64' else 'aarch64'}"
            wheel = make_wheel(self.work / "dist", kernel.distribution, kernel.version, tag=tag)
            facts = {"components": kernel.components, "inventory": [], "peak_bytes": 1}
            facts |= {"seconds": SECONDS[kernel.name], "distribution": kernel.distribution}
            self.store.put(kernel.name, kernel.version, kernel.key, wheel, **facts)

    def build(self, plan=None, *, log=LOG, bootstrapped=False):
        """What `imgbuild build` leaves behind, without an engine."""
        plan = plan or self.plan()
        self.compile(plan)
        labels = {"imgbuild.base.source": "bootstrap"} if bootstrapped else {}
        bake, shown = self.work / "bake.json", self.work / "log"
        bake.write_text(json.dumps({"target": {plan.name: {"labels": labels}}}))
        shown.write_text(log)
        staged = self.work / "comfyui-src"
        recorder = Recorder(self.project, self.cache, [plan], comfyui=staged, say=self.said.append)
        outcome = Outcome(target=plan.name, state="built", tags=plan.tags, digest="sha256:1", seconds=100)
        recorder.finished([outcome], engine="docker", bake=bake, log=shown, wheels=self.store.entries)
        assert self.said == []

    def why(self, target="h100", **options):
        builder = self.builder()
        return why.look(builder, builder.matrix.select([target])[0], Options(**options))

    def edit(self, file, old, new):
        path = self.project.root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def house(project, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: True)
    # The wheels here hold nothing.
    monkeypatch.setattr(kernelbuild, "foreign", lambda entry, plan, kernel: None)
    return House(project, tmp_path)


def by_name(found):
    return {p.name: p for p in found.parts}


def differing(found):
    return [p.name for p in found.differing]


def components(part):
    return [d.component for d in part.differences]


# Parts


def test_parts_are_those_of_the_image_from_its_bottom_to_its_top(house):
    assert list(parts.parts(house.project, house.plan())) == [
        "base",
        *(f"layer:{name}" for name in ("nvidia", "torch", "python", "media", "comfy", "work")),
        *(f"kernel:{name}" for name in ("probe", "sageattention", "flash-attn")),
        "comfyui",
        "nodes",
        "comfyrun",
        "profile",
        "image",
    ]


def test_versions_stay_readable(house):
    found = parts.parts(house.project, house.plan())
    assert found["layer:torch"]["torch"].startswith("2.13.0 ")
    assert found["comfyui"]["version"] == "0.33.0"
    assert found["image"]["imgbuild"] == __version__
    assert found["profile"]["default CUDA_CACHE_MAXSIZE"] == "4294967296"
    gb10 = parts.parts(house.project, house.plan("gb10"))["profile"]
    assert gb10["default --reserve-vram"] == "8"
    assert gb10["default --disable-pinned-memory"] == "on"


def test_a_package_shares_no_name_with_what_a_stage_is_made_from(house):
    for name, part in parts.parts(house.project, house.plan()).items():
        packages = {w.name for x in house.plan().layers if f"layer:{x.name}" == name for w in x.wheels}
        assert all(c.startswith("stage ") for c in set(part) - packages) or not name.startswith("layer:")


@pytest.mark.parametrize(
    ("template", "changed"),
    [
        ("stages/install.py", {"layer", "kernel"}),
        ("stages/settle.py", {"layer", "kernel", "comfyui", "nodes", "comfyrun", "profile"}),
        ("stages/code.py", {"comfyui", "nodes", "comfyrun", "profile"}),
        ("stages/compile.py", {"kernel", "profile"}),
        ("base-setup.sh.j2", {"base"}),
        ("uv.Dockerfile.j2", {"layer"}),
        ("venv.Dockerfile.j2", {"layer"}),
        ("kernel.Dockerfile.j2", {"kernel"}),
        ("runtime.Dockerfile.j2", {"image"}),
    ],
)
def test_another_version_of_the_tool_is_explained(house, template, changed):
    house.build()
    with (house.project.templates / template).open("a") as file:
        file.write("# another\n")
    found = house.why()
    assert {name.partition(":")[0] for name in differing(found)} == changed
    for part in found.differing:
        # what shapes a kernel's wheel is part of its key, and the profile holds that key
        known = components(part)
        assert known[-1] == "stage scripts" or "stages" in known or known[0].startswith("kernel ")


def test_every_template_is_part_of_something(house):
    """One that nobody lists would make a build run again without a reason."""
    told = {name for names in parts._TEMPLATES.values() for name in names}
    there = {p.relative_to(house.project.templates).as_posix() for p in house.project.templates.rglob("*.*")}
    there -= {p for p in there if "__pycache__" in p}
    shaping_kernels = {f"stages/{name}" for name in ("source.py", "toolchain.py", "compile.py")}
    # compile stages that only measure, check, or wait; and what no image is made from
    beside = {"stages/measure.py", "stages/prove.py", "stages/gate.sh", "toolchain.Dockerfile.j2"}
    beside |= {"report.html.j2", "diff.html.j2", "workflow.yml.j2"}  # pages; the public CI
    beside |= {p for p in there if p.startswith("compose/")}  # how images are run
    assert there - told - shaping_kernels - beside == set()


# Why


def test_no_history(house):
    house.compile(house.plan("gb10"))
    found = house.why()
    assert found.last is None
    assert {p.state for p in found.parts} == {"new"}
    assert by_name(found)["kernel:sageattention"].compile_seconds == 578.0, "as it took for another target"
    assert re.fullmatch(
        r"no build of h100 is recorded on this machine; a cold one takes about 27 min of compiling, "
        r"about \d+ min of everything else \(estimated\), 3\.\d GB to push",
        found.sentence(),
    )


def test_a_kernel_nobody_has_compiled(house):
    found = house.why()
    assert by_name(found)["kernel:probe"].compile_seconds is None
    assert "compiling kernel:probe and kernel:sageattention and kernel:flash-attn (never measured" in (
        found.sentence()
    )


def test_nothing_changed(house):
    house.build()
    found = house.why()
    assert {p.state for p in found.parts} == {"same"}
    assert (found.compile_seconds, found.stage_seconds, found.bytes) == (0, 0, 0)
    assert found.sentence() == (
        "all 15 parts are those of the last build: nothing to compile, nothing to push"
    )


def test_a_flag_of_the_profile(house):
    house.build()
    house.edit(
        "images/comfyui.yaml",
        "profile:\n",
        "profile:\n  flags:\n    - { flag: --preview-size, value: '8', why: a test, evidence: V }\n",
    )
    found = house.why()
    assert differing(found) == ["profile"]
    part = by_name(found)["profile"]
    assert [d.text() for d in part.shown()] == [
        "classic --preview-size – → 8",
        "default --preview-size – → 8",
    ]
    assert (part.stage_seconds, part.measured) == (1.4, True)
    assert found.compile_seconds == 0
    assert found.bytes < 10_000
    assert found.sentence() == (
        "1 of 15 parts differs: profile; nothing to compile, about 1 s of everything else (measured), 3 kB to push"
    )


def _bump_torch(house):
    """torch 2.13.1, where there is such a thing."""
    house.edit("images/comfyui.yaml", 'version: "2.13.0"\n', 'version: "2.13.1"\n')
    for name in ("ada", "gb10", "h100"):
        house.edit(f"images/targets/{name}.yaml", 'torch: "2.13.0"\n', 'torch: "2.13.1"\n')
    matrix = load_matrix(house.project.images)
    target = matrix.select(["h100"])[0]
    path = house.project.locks / lock_name("h100", "0.33.0")
    wheels = parse_lock(path.read_text(), name=path.name).wheels
    wheels = [
        dataclasses.replace(w, version="2.13.1", sha256="1" * 64) if w.name == "torch" else w for w in wheels
    ]
    requirements = read_requirements(house.project, matrix, "0.33.0")
    lock = Lock(inputs=inputs_hash(requirements, target, matrix), wheels=tuple(wheels))
    path.write_text(lock.text("h100"))


def test_another_torch(house):
    house.build()
    _bump_torch(house)
    found = house.why()
    # profile: it holds the constraints that nodes are installed under
    assert differing(found) == [
        "layer:torch",
        "kernel:probe",
        "kernel:sageattention",
        "kernel:flash-attn",
        "profile",
    ]
    torch = by_name(found)["layer:torch"]
    assert [d.text() for d in torch.shown()] == ["torch 2.13.0 → 2.13.1"]
    size = next(x.size for x in house.plan().layers if x.name == "torch")
    assert (torch.stage_seconds > 40, torch.measured, torch.bytes) == (False, True, size)
    flash = by_name(found)["kernel:flash-attn"]
    assert (flash.compiles, flash.compile_seconds) == (True, 1045.0)
    assert components(flash) == ["key", "torch"]
    assert [d.text() for d in flash.shown()][1] == "torch torch==2.13.0 → torch==2.13.1"
    assert found.compile_seconds == sum(SECONDS.values())
    assert "about 27 min of compiling, " in found.sentence()


def test_minutes_come_from_history_where_the_wheelhouse_was_pruned(house):
    house.build()
    house.store.prune(keep=())
    _bump_torch(house)
    assert house.why().compile_seconds == sum(SECONDS.values())


def test_an_edit_of_a_kernel(house):
    house.build()
    house.edit("images/comfyui.yaml", "kFillZero>(smem_offset", "kFillNothing>(smem_offset")
    found = house.why()
    # profile: it holds the kernels' keys, by which a verdict of the preflight is kept
    assert differing(found) == ["kernel:sageattention", "profile"]
    part = by_name(found)["kernel:sageattention"]
    assert components(part) == ["key", "edits", "recipe"]
    assert [d.component for d in part.shown()] == ["key", "edits"], "the recipe says nothing more"
    assert found.compile_seconds == 578.0
    assert (
        "2 of 15 parts differ: kernel:sageattention, profile; about 10 min of compiling, " in found.sentence()
    )


def test_a_change_that_only_the_recipe_shows(house):
    house.build()
    house.edit("images/comfyui.yaml", "imports: [imgbuild_probe]", "imports: [imgbuild_probe, ctypes]")
    part = by_name(house.why())["kernel:probe"]
    assert [d.component for d in part.shown()] == ["key", "recipe"]


def test_what_is_in_the_wheelhouse_is_not_compiled(house):
    before = house.project.images.joinpath("comfyui.yaml").read_text()
    house.edit("images/comfyui.yaml", "kFillZero>(smem_offset", "kFillNothing>(smem_offset")
    house.compile(house.plan())
    after = house.project.images.joinpath("comfyui.yaml").read_text()
    house.project.images.joinpath("comfyui.yaml").write_text(before)
    house.build()
    house.project.images.joinpath("comfyui.yaml").write_text(after)
    found = house.why()
    part = by_name(found)["kernel:sageattention"]
    assert (part.state, part.compiles, part.note) == ("changed", False, "in the wheelhouse already")
    assert part.bytes == house.store.get("sageattention", house.plan().kernels[1].key).size
    assert "nothing to compile" in found.sentence()


def test_a_wheelhouse_that_lost_a_wheel(house):
    house.build()
    keep = {(k.name, k.key) for k in house.plan().kernels if k.name != "probe"}
    house.store.prune(keep=keep)
    found = house.why()
    part = by_name(found)["kernel:probe"]
    assert (part.state, part.compiles, part.compile_seconds) == ("same", True, 12.0)
    assert found.sentence() == "0 of 15 parts differ; about 12 s of compiling, nothing to push"


def test_a_base_that_moves_makes_others_run_again_and_moves_none_of_them(house):
    house.build()
    house.edit(
        "images/comfyui.yaml",
        "      - tini\n    exclude:\n      - /usr/lib/python3*",
        "      - tini\n      - netbase\n    exclude:\n      - /usr/lib/python3*",
    )
    found = house.why()
    assert differing(found) == ["base"]
    assert {p.state for p in found.parts} == {"changed", "runs again", "same"}
    torch = by_name(found)["layer:torch"]
    assert (torch.state, torch.bytes) == ("runs again", 0)
    assert torch.stage_seconds > 0
    assert found.bytes == by_name(found)["base"].bytes
    assert [d.text() for d in by_name(found)["base"].differences] == ["packages – → netbase"]
    assert by_name(found)["image"].state == "same"


@pytest.mark.parametrize("bootstrapped", [True, False])
def test_a_pinned_digest_says_nothing_about_a_bootstrapped_base(house, bootstrapped):
    house.build(bootstrapped=bootstrapped)
    pin = json.loads((house.project.locks / "sources.json").read_text())["bases"]["debian13"]
    house.edit("images/locks/sources.json", pin, f"sha256:{'0' * 64}")
    assert differing(house.why()) == ([] if bootstrapped else ["base"])


def test_code_of_ours(house):
    house.build()
    (house.project.nodes / "dgls" / "more.py").write_text("")
    (house.project.entrypoint / "comfyrun" / "__init__.py").write_text("# another\n")
    found = by_name(house.why())
    assert [n for n, p in found.items() if p.differs] == ["nodes", "comfyrun"]
    assert components(found["nodes"]) == ["dgls"]
    assert found["profile"].state == "runs again", "its flags are checked by the entrypoint's code"


def test_a_checkout_is_compared_by_its_content(house, tmp_path):
    tree = tmp_path / "ComfyUI"
    for name in ("main.py", "server.py", "nodes.py", "comfy/cli_args.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    (tree / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    own = house.project.requirements / "comfyui-0.33.0.txt"
    (tree / "requirements.txt").write_text(own.read_text())
    given = {"sources": {"comfyui": tree}}

    (house.work / "comfyui-src").mkdir()
    builder = house.builder()
    source, _ = builder.source(Options(**given))
    why.stage(tree, house.work / "comfyui-src")
    house.build(house.plan(source=source))
    assert differing(house.why(**given)) == []
    (tree / "models").mkdir()
    (tree / "models" / "big.safetensors").write_text("gigabytes")
    assert differing(house.why(**given)) == [], "a model goes into no image"
    (tree / "server.py").write_text("# another\n")
    found = house.why(**given)
    assert differing(found) == ["comfyui"]
    assert components(by_name(found)["comfyui"]) == ["content"]
    assert "kind" in components(by_name(house.why())["comfyui"]), "without --source: the pinned one"


def test_a_kernel_that_is_no_longer_wanted(house):
    house.build()
    house.edit("images/targets/h100.yaml", "kernels: [probe, sageattention, flash-attn]", "kernels: [probe]")
    found = by_name(house.why())
    assert [n for n, p in found.items() if p.state == "gone"] == ["kernel:sageattention", "kernel:flash-attn"]
    assert found["kernel:flash-attn"].bytes == 0


def test_upstream_out_of_reach(house, monkeypatch):
    """What a build would do then is what is compared."""
    house.build()
    house.store.prune(keep={(k.name, k.key) for k in house.plan().kernels if k.name != "sageattention"})
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: "ComfyUI" in git)
    found = house.why()
    part = by_name(found)["kernel:sageattention"]
    assert part.differences[1].text() == "kernel sageattention 2.2.0 → sageattention==1.0.6"
    assert (part.compiles, part.bytes > 0) == (False, True)
    assert house.said == [
        "NOT sageattention 2.2.0 for h100: https://github.com/thu-ml/SageAttention.git cannot be reached."
    ]
    same = house.plan(kernel_sources={"sageattention": KernelSource(kind="fallback", identity="x")})
    assert found.plan == same.key


def test_damaged_history(house):
    house.build()
    path = house.cache / "history" / "h100.jsonl"
    path.write_bytes(b"\x00\xff{\n[1]\n" + path.read_bytes() + b'{"format": 1, "target"')
    assert differing(house.why()) == []
    path.write_bytes(b"\x00\xff{\n")
    assert house.why().last is None


# Words


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("2.12.0 0123456789ab", "2.13.0 ba9876543210", "x 2.12.0 → 2.13.0"),
        ("2.12.0 0123456789ab", "2.12.0 ba9876543210", "x 01234567 → ba987654"),
        ("sha256:" + "0" * 64, "tree:" + "1" * 64, "x 00000000 → 11111111"),
        ("a b c 0123456789ab", "a c d ba9876543210", "x b → d"),
        ("a b", "a b c", "x – → c"),
        ("a b", "b a", "x: another order"),
        (None, "8", "x – → 8"),
        ("8", None, "x 8 → –"),
        ("", "8", "x – → 8"),
        ("1", "y" * 99, f"x 1 → {'y' * 43}…"),
    ],
)
def test_differences_in_few_words(old, new, says):
    assert why.Difference(component="x", old=old, new=new).text() == says


# The command


@pytest.fixture
def told(house, monkeypatch):
    monkeypatch.setenv("IMGBUILD_CACHE", str(house.cache))
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: main(["--project", str(house.project.root), "why", *words])


def test_table_and_sentence(house, told, capsys):
    house.build()
    house.edit("images/comfyui.yaml", "kFillZero>(smem_offset", "kFillNothing>(smem_offset")
    assert told("h100") == 0
    out = capsys.readouterr().out
    assert (
        f"h100, since the build of {last(house.cache, 'h100').when}: comfyui:0.33.0-cu130-h100 (docker)"
        in out
    )
    assert re.search(r"kernel:sageattention +│ changed +│ key [0-9a-f]{8} → [0-9a-f]{8} +│ +578 s", out)
    assert re.search(r"│ +│ edits [0-9a-f]{8} → [0-9a-f]{8} +│", out)
    assert out.splitlines()[-1].startswith("2 of 15 parts differ: kernel:sageattention, profile; ")


def test_json(house, told, capsys):
    assert told("h100", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["target"], found["last"], found["differ"]) == ("h100", None, 15)
    house.build()
    house.edit("images/comfyui.yaml", "kFillZero>(smem_offset", "kFillNothing>(smem_offset")
    assert told("h100", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "target",
        "plan",
        "last",
        "parts",
        "differ",
        "compile_seconds",
        "stage_seconds",
        "bytes",
        "sentence",
    }
    assert set(found["last"]) == {"when", "plan", "tag", "digest", "state", "engine", "base", "seconds"}
    assert (found["differ"], found["compile_seconds"], found["plan"]) == (2, 578.0, house.plan().key)
    part, _ = [p for p in found["parts"] if p["state"] == "changed"]
    assert part.pop("differences")[1]["component"] == "edits"
    size = next(e.size for e in house.store.entries() if e.kernel == "sageattention")
    assert part == {
        "name": "kernel:sageattention",
        "state": "changed",
        "compiles": True,
        "compile_seconds": 578.0,
        "stage_seconds": 3,
        "measured": False,
        "bytes": size,
        "note": "",
    }


def test_unknown_target(house, told, capsys):
    assert told("h1000") == SelectionError.exit_code
    assert "no target 'h1000'; did you mean 'h100'?" in capsys.readouterr().err


def test_unknown_source(told, capsys):
    assert told("h100", "--source", "comfyiu=x") == 2
    assert "did you mean 'comfyui'?" in capsys.readouterr().err
