from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from fatbins.synthetic import AARCH64, X86_64, A, library
from hypothesis import given
from hypothesis import strategies as st
from test_build import Recorded
from test_wheelhouse import make_wheel

from imgbuild import bases, kernelbuild, sources
from imgbuild.build import Builder, Options
from imgbuild.cli import main
from imgbuild.engines import docker
from imgbuild.errors import (
    BuildError,
    ConfigError,
    DiskError,
    EngineError,
    NetworkError,
    RegistryError,
    VerificationError,
)
from imgbuild.kernelbuild import KILLED, budget, budget_secret, check_jobs, collect, find
from imgbuild.kernels import KernelSource
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import Project
from imgbuild.render import BUILDKIT, bake_file
from imgbuild.settings import Settings
from imgbuild.wheelhouse import Wheelhouse

FIXTURES = Path(__file__).with_name("fatbins")
KERNELS = ("probe", "sageattention", "flash-attn")
GB = 10**9


def kernel_of(plan, name):
    return next(k for k in plan.kernels if k.name == name)


def binary(code, machine="x86_64"):
    """A library that holds native code, made of nothing but headers."""
    archs = [(int(re.sub(r"\D", "", c)), A if c.endswith("a") else 0) for c in code]
    return library(*archs, machine={"x86_64": X86_64, "aarch64": AARCH64}[machine])


def compile_into(folder, plan, kernel, *, code=None, content=None):
    """What a compile stage leaves."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[plan.arch]
    content = binary(code or kernel.code, machine) if content is None else content
    tag = f"cp313-cp313-linux_{machine}"
    wheel = make_wheel(folder, kernel.distribution, kernel.version, tag=tag, content=content)
    record = {"seconds": 61.5, "peak_bytes": 5 * GB, "peak_process_bytes": 3 * GB}
    (folder / "build.json").write_text(json.dumps(record))
    return wheel


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return Wheelhouse(tmp_path / "cache" / "wheelhouse", say=said.append)


def put(store, tmp_path, plan, *names):
    for name in names:
        kernel = kernel_of(plan, name)
        wheel = compile_into(tmp_path / f"made-{plan.name}-{name}", plan, kernel)
        store.put(
            name,
            kernel.version,
            kernel.key,
            wheel,
            components=kernel.components,
            inventory=[],
            seconds=125,
            peak_bytes=GB,
            distribution=kernel.distribution,
        )


# --- the budget ----------------------------------------------------------------------------------


def needing(plans, *gigabytes):
    return [dataclasses.replace(plans["gb10"].kernels[0], gb_per_job=float(gb)) for gb in gigabytes]


def cores(monkeypatch, count):
    monkeypatch.setattr(kernelbuild.os, "sched_getaffinity", lambda _pid: set(range(count)))


@pytest.mark.parametrize(
    ("gigabytes", "count", "available", "share", "asked", "jobs"),
    [
        ([5], 16, 16, 0.75, None, 2),  # twice 5 of 12
        ([5], 16, 16, 1, None, 3),
        ([5], 2, 640, 0.75, None, 2),  # no more than there are cores
        ([5], 16, 4, 0.75, None, 1),  # one has to run
        ([1, 5, 4], 16, 16, 0.75, None, 2),  # the hungriest decides
        ([0.5], 64, 16, 0.75, None, 24),
        ([], 4, 64, 0.75, None, 4),
        ([5], 2, 4, 0.1, 9, 9),  # who asks, knows
    ],
)
def test_compilers_at_once(monkeypatch, plans, gigabytes, count, available, share, asked, jobs):
    cores(monkeypatch, count)
    found = budget(needing(plans, *gigabytes), jobs=asked, share=share, available=available * GB)
    assert found.jobs == jobs


@given(
    gb=st.floats(0.1, 512),
    available=st.integers(0, 2 * 10**12),
    share=st.floats(0, 1, exclude_min=True),
    count=st.integers(1, 256),
)
def test_budget_is_kept(plans, gb, available, share, count):
    with pytest.MonkeyPatch.context() as monkeypatch:
        cores(monkeypatch, count)
        found = budget(needing(plans, gb), jobs=None, share=share, available=available)
    assert 1 <= found.jobs <= count
    assert found.jobs == 1 or found.jobs * gb * 1e9 <= share * available


def test_budget_is_said(monkeypatch, plans):
    cores(monkeypatch, 8)
    found = budget(needing(plans, 5), jobs=None, share=0.75, available=16 * GB)
    assert found.sentence() == (
        "2 compilers at once: 8 cores; 75% of 16.0 GB available memory, 5 GB each (--jobs, --memory-share)"
    )
    one = budget(needing(plans, 5), jobs=1, share=0.75, available=16 * GB)
    assert one.sentence().startswith("1 compiler at once: ")


@pytest.mark.parametrize(
    ("jobs", "share", "says"),
    [
        (0, 0.5, "--jobs 0: at least one compiler has to run"),
        (-2, 0.5, "--jobs -2: at least one"),
        (None, 0.0, "--memory-share 0: write a share of the memory between 0 and 1, such as 0.5"),
        (None, 2.0, "--memory-share 2: write"),
        (1, 75.0, "--memory-share 75: write"),
        (None, -0.5, "--memory-share -0.5: write"),
        (None, float("nan"), "--memory-share nan: write"),
    ],
)
def test_budget_that_is_none(jobs, share, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_jobs(jobs, share)


def test_budget_that_is_one():
    check_jobs(None, 1)
    check_jobs(1, 0.01)


@pytest.mark.parametrize(
    ("meminfo", "limit", "size"),
    [
        ("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n", None, 8_192_000),
        ("MemAvailable: 8000 kB\n", "max\n", 8_192_000),
        ("MemAvailable: 8000 kB\n", "5000000\n", 4_000_000),
        ("MemAvailable: 8000 kB\n", "99000000\n", 8_192_000),
        ("MemTotal: 16000 kB\n", None, 4_000_000_000),
    ],
)
def test_memory_that_is_available(tmp_path, monkeypatch, meminfo, limit, size):
    used = "1000000\n"  # of the limit
    texts = {"proc/meminfo": meminfo, "sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/memory.current": used}
    for name, text in texts.items():
        if text is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(kernelbuild, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert kernelbuild.available_memory() == size


def test_what_the_stages_are_told(plans):
    kernels = plans["h100"].kernels
    told = json.loads(budget_secret(kernels, 3))
    assert set(told) == set(KERNELS)
    for kernel in kernels:
        wanted = {name: text.replace("{jobs}", "3") for name, text in kernel.budget.items()}
        assert told[kernel.name] == {**wanted, "IMGBUILD_PLACES": "3"}
    assert told["flash-attn"]["MAX_JOBS"] == told["sageattention"]["MAX_JOBS"] == "3"
    assert told["flash-attn"]["NVCC_THREADS"] == "1", "or it multiplies the two"


# --- looking for what is at hand -----------------------------------------------------------------


class Registry:
    """A registry's wheelhouse that has some kernels, or fails."""

    where = "registry.example/x"

    def __init__(self, tmp_path, plan, *names, error=None):
        self.tmp_path, self.plan, self.names, self.error = tmp_path / "registry", plan, names, error
        self.asked, self.down = [], False

    def exists(self, kernel, key):
        if self.error:
            raise self.error
        return kernel in self.names

    def pull(self, kernel, key, store, *, distribution=None):
        self.asked.append(kernel)
        if self.error:
            raise self.error
        if kernel in self.names:
            put(store, self.tmp_path, self.plan, kernel)
        return store.get(kernel, key, distribution=distribution)


def test_nothing_at_hand(plans, store, said):
    found = find([plans["h100"]], store, None, say=said.append)
    assert found.entries == {}
    assert [(p.name, k.name) for p, k in found.missing] == [("h100", name) for name in KERNELS]
    assert said == []


def test_in_the_wheelhouse(plans, store, said, tmp_path):
    plan = plans["h100"]
    put(store, tmp_path, plan, *KERNELS)
    registry = Registry(tmp_path, plan, error=RegistryError("must not be asked"))
    found = find([plan], store, registry, say=said.append)
    assert found.missing == ()
    assert list(found.entries) == [k.key for k in plan.kernels]
    assert registry.asked == []
    assert len(said) == 3
    for words, kernel in zip(said, plan.kernels, strict=True):
        assert words.startswith(f"{kernel.name} {kernel.version} for h100 ({kernel.code[0]}): ")
        assert "the wheelhouse" in words
        assert kernel.key in words
        assert "2 min 5 s" in words


def test_in_the_registry(plans, store, said, tmp_path):
    plan = plans["gb10"]
    put(store, tmp_path, plan, "probe")
    registry = Registry(tmp_path, plan, "sageattention")
    found = find([plan], store, registry, say=said.append)
    assert registry.asked == ["sageattention", "flash-attn"]
    assert {e.kernel for e in found.entries.values()} == {"probe", "sageattention"}
    assert [k.name for _, k in found.missing] == ["flash-attn"]
    assert [w.split()[0] for w in said if "registry.example/x" in w] == ["sageattention"]
    assert store.get("sageattention", kernel_of(plan, "sageattention").key) is not None, "for the next time"


def test_asked_without_being_pulled(plans, store, said, tmp_path):
    plan = plans["gb10"]
    registry = Registry(tmp_path, plan, "sageattention")
    found = find([plan], store, registry, say=said.append, only=["probe", "sageattention"], pull=False)
    assert registry.asked == [], "nothing is pulled"
    assert found.entries == {}
    assert [k.name for _, k in found.missing] == ["probe"]
    assert ["would be pulled from registry.example/x" in w for w in said] == [True]
    assert store.entries() == ()


def test_registry_that_fails_when_it_is_only_asked(plans, store, said, tmp_path):
    registry = Registry(
        tmp_path, plans["ada"], error=RegistryError("registry.example: pull failed: it is down")
    )
    found = find([plans["ada"]], store, registry, say=said.append, only=["probe"], pull=False)
    assert [k.name for _, k in found.missing] == ["probe"]
    assert "it is down" in said[0]


def test_registry_that_fails_costs_time_and_not_the_build(plans, store, said, tmp_path):
    plan = plans["ada"]
    registry = Registry(tmp_path, plan, error=RegistryError("registry.example: pull failed: it is down"))
    found = find([plan], store, registry, say=said.append)
    assert [k.name for _, k in found.missing] == list(KERNELS)
    assert len(said) == 3
    for words, name in zip(said, KERNELS, strict=True):
        assert name in words
        assert "pull failed: it is down" in words


@pytest.mark.parametrize("where", ["store", "registry"])
@pytest.mark.parametrize("how", ["other code", "other components"])
def test_whole_wheel_that_is_not_what_its_key_stands_for(plans, store, said, tmp_path, where, how):
    """Set aside, told, and compiled anew: somebody put it there, or a registry gave it."""
    plan = plans["gb10"]
    probe = kernel_of(plan, "probe")
    to = (
        {"code": ("sm_90",)} if how == "other code" else {"components": {**probe.components, "gcc": "12.2.0"}}
    )
    other = dataclasses.replace(plan, kernels=(dataclasses.replace(probe, **to),))
    registry = Registry(tmp_path, other, "probe" if where == "registry" else "")
    if where == "store":
        put(store, tmp_path, other, "probe")
    found = find([plan], store, registry, say=said.append, only=["probe"])
    assert found.entries == {}
    assert [k.name for _, k in found.missing] == ["probe"]
    (words,) = (w for w in said if f"probe {probe.key} is not used" in w)
    says = {"other code": "holds sm_90, wanted sm_121", "other components": "it was made from another gcc"}
    assert says[how] in words
    assert store.entries() == ()


def test_registry_that_is_down_is_asked_once(plans, store, said, tmp_path):
    registry = Registry(tmp_path, plans["h100"], error=RegistryError("nobody answers"))
    registry.pull = lambda *a, own=registry.pull, **k: (setattr(registry, "down", True), own(*a, **k))
    find([plans["h100"]], store, registry, say=said.append)
    assert registry.asked == ["probe"]
    assert len(said) == 1


def test_one_kernel_of_two_targets_is_looked_for_once(plans, store, said, tmp_path):
    twin = dataclasses.replace(plans["h100"], name="h200")
    found = find([plans["h100"], twin], store, None, say=said.append)
    assert [(p.name, k.name) for p, k in found.missing] == [("h100", name) for name in KERNELS]
    put(store, tmp_path, twin, *KERNELS)
    registry = Registry(tmp_path, twin)
    assert len(find([plans["h100"], twin], store, registry, say=said.append).entries) == 3
    assert len(said) == 3


def test_only_some_kernels(plans, store, said, tmp_path):
    registry = Registry(tmp_path, plans["h100"], *KERNELS)
    found = find([plans["h100"]], store, registry, say=said.append, only=["probe"])
    assert registry.asked == ["probe"], "what nobody asked for is not downloaded"
    assert [e.kernel for e in found.entries.values()] == ["probe"]


def test_fallback_is_looked_for_nowhere(root, matrix, store, said):
    plan = make_plan(
        Project(root=root, writable=False),
        matrix,
        matrix.targets["h100"],
        kernel_sources={"sageattention": KernelSource(kind="fallback", identity="sageattention==1.0.6")},
    )
    found = find([plan], store, None, say=said.append)
    assert [k.name for _, k in found.missing] == ["probe", "flash-attn"]


def test_target_without_kernels(plans, store, said):
    found = find([plans["cpu"]], store, None, say=said.append)
    assert (found.entries, found.missing, said) == ({}, (), [])


# --- the bake file that compiles -----------------------------------------------------------------


def test_bake_targets(plans):
    chosen = [plans["gb10"], plans["h100"]]
    images = bake_file(chosen, folder="/work", contexts={"probe-src": "/p"}, secrets=["id=machine,src=/m"])
    for image in images["target"].values():
        image |= {"labels": {"x": "y"}, "output": ["type=docker"]}
    missing = [(plan, kernel) for plan in chosen for kernel in plan.kernels]
    found = kernelbuild.bake_targets(images, missing, Path("/out"))
    assert list(found) == ["target"], "no group: exactly what is named is baked"
    assert list(found["target"]) == [f"{p.name}-{k.name}" for p, k in missing]
    for plan, kernel in missing:
        target = found["target"][f"{plan.name}-{kernel.name}"]
        assert target["target"] == f"kernel-{kernel.name}"
        assert target["output"] == [f"type=local,dest=/out/{plan.name}-{kernel.name}"]
        assert not {"tags", "labels"} & set(target)
        assert target["args"] == {"SOURCE_DATE_EPOCH": str(plan.epoch)}, (
            "an argument is a part of BuildKit's key"
        )
        assert target["context"] == f"/work/{plan.name}"
        assert target["contexts"]["probe-src"] == "/p"
        assert target["platforms"] == [plan.platform]
        assert target["secret"] == ["id=machine,src=/m"]
        assert target["attest"] == ["type=provenance,disabled=true"]
    assert images["target"]["gb10"]["output"] == ["type=docker"], "the images' own targets stay as they are"


# --- what was compiled ---------------------------------------------------------------------------


def one(plans, target="gb10", kernel="sageattention"):
    return [(plans[target], kernel_of(plans[target], kernel))]


def gather(missing, out, store, said):
    return collect(missing, out, store, say=said.append)


def test_collect(plans, store, said, tmp_path):
    ((plan, kernel),) = missing = one(plans)
    out = tmp_path / "out"
    wheel = compile_into(out / "gb10-sageattention", plan, kernel)
    found = gather(missing, out, store, said)
    assert found.refused == ()
    ((key, entry),) = found.entries.items()
    assert key == kernel.key
    assert entry == store.get("sageattention", kernel.key)
    assert entry.wheel.name == wheel.name
    assert entry.components == kernel.components
    assert entry.arches == ("sm_121a",)
    assert (entry.seconds, entry.peak_bytes) == (61.5, 5 * GB)
    assert not (out / "gb10-sageattention").exists(), "it is not on the disk twice"
    (words,) = said
    assert words.startswith("sageattention 2.2.0 for gb10: compiled in 1 min 2 s, ")
    assert words.endswith(" MB, at most 5.0 GB of memory; holds sm_121a")


@pytest.mark.parametrize("what", ["nothing", "no record", "no wheel", "two wheels", "no folder"])
def test_what_is_not_whole_is_left_out(plans, store, said, tmp_path, what):
    ((plan, kernel),) = missing = one(plans)
    folder = tmp_path / "out" / "gb10-sageattention"
    folder.mkdir(parents=True)
    if what not in ("nothing", "no folder"):
        wheel = compile_into(folder, plan, kernel)
        if what == "no record":
            (folder / "build.json").unlink()
        elif what == "no wheel":
            wheel.unlink()
        else:
            wheel.with_name("x-1-py3-none-any.whl").write_bytes(wheel.read_bytes())
    elif what == "no folder":
        folder.rmdir()
    found = gather(missing, tmp_path / "out", store, said)
    assert (found.entries, found.refused) == ({}, ())
    assert store.entries() == ()
    assert said == []


WRONG = {
    # Real libraries: what nvcc made for exactly one GPU, and for several.
    "another GPU": (
        "h100",
        (FIXTURES / "exact.so").read_bytes(),
        "holds sm_121a, wanted sm_90a and no other, that runs on 9.0",
    ),
    "too much": ("h100", (FIXTURES / "mixed.so").read_bytes(), "sm_90a and no other, that runs on 9.0"),
    "another machine": ("gb10", (FIXTURES / "exact.so").read_bytes(), "is for x86_64, wanted aarch64"),
    # 12.0's spelling for 12.1.
    "its sibling": (
        "gb10",
        binary(["sm_120a"], "aarch64"),
        "holds sm_120a, wanted sm_121a and no other, that runs on 12.1",
    ),
    "without the suffix": ("gb10", binary(["sm_121"], "aarch64"), "holds sm_121, wanted sm_121a"),
    "no GPU code": (
        "gb10",
        binary([], "aarch64"),
        "its 1 binaries hold no GPU code, wanted sm_121a and no other, that runs on 12.1",
    ),
    "no binary": ("gb10", b"text", "it holds no binary, wanted sm_121a"),
    "damaged": ("gb10", binary(["sm_121a"], "aarch64")[:90], "sageattention/_fused.so "),
}


@pytest.mark.parametrize(("target", "content", "says"), WRONG.values(), ids=WRONG)
def test_wheel_for_something_else_never_gets_in(plans, store, said, tmp_path, target, content, says):
    """The acceptance: a wheel deliberately built for another arch fails, with the file and the archs named."""
    ((plan, kernel),) = missing = one(plans, target)
    compile_into(tmp_path / "out" / f"{target}-sageattention", plan, kernel, content=content)
    (refused,) = gather(missing, tmp_path / "out", store, said).refused
    assert refused.exit_code == 7
    assert refused.message.startswith(
        f"sageattention for {target} is not what it was compiled for: sageattention-2.2.0"
    )
    assert says in refused.message
    if not says.startswith("it"):
        assert "sageattention/_fused.so" in refused.message
    assert refused.hint == "images/comfyui.yaml: kernels.sageattention.spelling"
    assert store.entries() == ()


def test_real_library_of_the_right_gpu_gets_in(plans, store, said, tmp_path):
    """Of nvcc's own making; it is for x86_64, so the plan is too."""
    ((plan, kernel),) = one(plans)
    plan = dataclasses.replace(plan, arch="amd64", manylinux="x86_64-manylinux_2_40")
    content = (FIXTURES / "exact.so").read_bytes()
    compile_into(tmp_path / "out" / "gb10-sageattention", plan, kernel, content=content)
    (entry,) = gather([(plan, kernel)], tmp_path / "out", store, said).entries.values()
    assert entry.arches == ("sm_121a",)
    assert [v.problem for v in store.verify()] == [None]


def test_wheel_of_another_name_never_gets_in(plans, store, said, tmp_path):
    ((plan, kernel),) = missing = one(plans)
    other = dataclasses.replace(kernel, distribution="sage-attention-fork")
    compile_into(tmp_path / "out" / "gb10-sageattention", plan, other)
    (refused,) = gather(missing, tmp_path / "out", store, said).refused
    assert "says sage-attention-fork, not sageattention" in refused.message
    assert store.entries() == ()


def test_a_wrong_wheel_does_not_cost_the_others(plans, store, said, tmp_path):
    plan = plans["gb10"]
    missing = [(plan, kernel) for kernel in plan.kernels]
    for _, kernel in missing:
        code = ["sm_90"] if kernel.name == "probe" else kernel.code
        compile_into(tmp_path / "out" / f"gb10-{kernel.name}", plan, kernel, code=code)
    found = gather(missing, tmp_path / "out", store, said)
    assert [e.kernel for e in found.entries.values()] == ["sageattention", "flash-attn"]
    (refused,) = found.refused
    assert "probe for gb10" in refused.message
    assert {e.kernel for e in store.entries()} == {"sageattention", "flash-attn"}


def test_folder_of_a_wheel(plans, store, tmp_path):
    put(store, tmp_path, plans["gb10"], "probe")
    (entry,) = store.entries()
    folder = kernelbuild.wheel_folder(entry, tmp_path / "a" / "b")
    assert [p.name for p in folder.iterdir()] == [entry.wheel.name], (
        "no entry.json: the wheel and nothing else"
    )
    assert (folder / entry.wheel.name).read_bytes() == entry.wheel.read_bytes()


# --- a whole build, with an engine that compiles what the recipes say ----------------------------


class Compiler(Recorded):
    """An engine whose kernel stages leave what they should, but for those that fail or go `wrong`."""

    def __init__(self, *, fails=(), wrong=None, abilities=BUILDKIT, says=b"", **more):
        super().__init__(**more)
        self.fails, self.wrong, self.abilities, self.words = set(fails), dict(wrong or {}), abilities, says
        self.compiled, self.secrets, self.wheels = [], {}, {}
        self.builder = None

    def bake(self, bake_file, targets, *, log, metadata, **_options):
        text = bake_file.read_text()
        self.bakes.append((text, targets))
        failed = False
        for name in targets:
            target = json.loads(text)["target"][name]
            found = [dict(part.split("=", 1) for part in s.split(",")) for s in target.get("secret", ())]
            self.secrets[name] = {s["id"]: Path(s["src"]).read_text() for s in found}
            if target["target"].startswith("kernel-"):
                failed |= self._compile(name, target)
            else:
                self.built(name, target)
        log.write(self.words)
        metadata.write_text("{}")
        return int(failed)

    def built(self, name, target):
        """Which wheels the image gets, by kernel."""
        folders = {n: Path(c) for n, c in target["contexts"].items() if n.startswith("kernel-")}
        self.wheels = {n.removeprefix("kernel-"): [p.name for p in f.iterdir()] for n, f in folders.items()}

    def _compile(self, name, target):
        kernel = target["target"].removeprefix("kernel-")
        self.compiled.append(name)
        if name in self.fails:
            return True
        recipe = json.loads((Path(target["context"]) / "kernels" / f"{kernel}.json").read_text())
        code = self.wrong.get(name, recipe["code"])
        folder = Path(target["output"][0].removeprefix("type=local,dest="))
        found = self.builder.matrix.common.kernels[kernel]
        like = SimpleNamespace(
            arch=target["platforms"][0].partition("/")[2],
            distribution=found.distribution,
            version=found.version,
            code=code,
        )
        compile_into(folder, like, like)
        return False


@pytest.fixture
def builder(project, tmp_path, monkeypatch, said):
    (project.root / "entrypoint").mkdir()
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: True)
    monkeypatch.setattr(bases, "registry_has", lambda base, env: True)
    monkeypatch.setattr(bases, "machine_mirrors", lambda suite: ())
    monkeypatch.setattr(kernelbuild, "available_memory", lambda: 16 * GB)
    cores(monkeypatch, 8)

    def make(engine, registry=None):
        engine.builder = Builder(
            project=project,
            matrix=load_matrix(project.images),
            settings=Settings(),
            env={},
            cache=tmp_path / "cache",
            engine=engine,
            say=said.append,
            notice=lambda title, lines: said.append("\n".join([title, *lines])),
            registry=registry,
        )
        return engine.builder

    return make


def build(work, *names, **options):
    return work.build(work.matrix.select(names), Options(force=True, **options))


def compile_(work, *names, **options):
    return work.compile(work.matrix.select(names), Options(**options))


def unreachable(monkeypatch, *words):
    """The hosts whose addresses hold one of these words."""
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: not any(w in git for w in words))


def names_in(work):
    return sorted(e.kernel for e in work.wheelhouse.entries())


def test_missing_kernels_are_compiled_once_and_then_taken_from_the_wheelhouse(builder, said):
    cold = Compiler()
    build(builder(cold), "h100")
    assert cold.compiled == ["h100-probe", "h100-sageattention", "h100-flash-attn"]
    assert [t for _, t in cold.bakes] == [tuple(cold.compiled), ("h100",)], "kernels first, then images"
    assert names_in(cold.builder) == sorted(KERNELS)
    assert "2 compilers at once: 8 cores; 75% of 16.0 GB available memory, 5 GB each" in "\n".join(said)

    said.clear()
    warm = Compiler()
    build(builder(warm), "h100")
    assert warm.compiled == []
    assert [t for _, t in warm.bakes] == [("h100",)]
    assert warm.wheels == cold.wheels
    assert {name: len(found) for name, found in warm.wheels.items()} == dict.fromkeys(KERNELS, 1)
    for name in KERNELS:
        assert any(w.startswith(f"{name} ") and "the wheelhouse" in w for w in said)
    assert not any("compilers at once" in w for w in said)


def test_every_target_gets_its_own(builder):
    engine = Compiler()
    build(builder(engine), "ada", "gb10", "cpu")
    assert sorted(engine.compiled) == sorted(f"{t}-{k}" for t in ("ada", "gb10") for k in KERNELS)
    by_platform = {(e.kernel, e.platform, e.arches) for e in engine.builder.wheelhouse.entries()}
    assert {
        ("flash-attn", "linux/amd64", ("sm_80",)),
        ("flash-attn", "linux/arm64", ("sm_120",)),
    } <= by_platform
    assert "kernel-" not in json.dumps(json.loads(engine.bakes[1][0])["target"]["cpu"])


def test_target_without_kernels_compiles_nothing(builder):
    engine = Compiler()
    build(builder(engine), "cpu")
    assert [t for _, t in engine.bakes] == [("cpu",)]


def test_budget_reaches_the_stages_as_a_secret_and_in_no_other_way(builder):
    engine = Compiler()
    work = builder(engine)
    build(work, "gb10", jobs=5)
    assert json.loads(engine.secrets["gb10-flash-attn"]["budget"])["flash-attn"] == {
        "MAX_JOBS": "5",
        "NVCC_THREADS": "1",
        "IMGBUILD_PLACES": "5",
    }
    assert "budget" not in engine.secrets["gb10"], "an image's own stages compile nothing"
    for text, _ in engine.bakes:
        assert not re.search("MAX_JOBS|IMGBUILD_PLACES|NVCC_THREADS", text)
        for target in json.loads(text)["target"].values():
            assert set(target["args"]) == {"SOURCE_DATE_EPOCH"}
    keys = {e.key for e in work.wheelhouse.entries()}
    for options in (
        Options(),
        Options(jobs=64),
        Options(memory_share=0.1),
        Options(no_cache=True, progress="json"),
    ):
        (plan,) = work.plans(
            work.matrix.select(["gb10"]), sources.upstream_source(work.project, work.matrix), options
        )
        assert {k.key for k in plan.kernels} == keys


def test_machines_mirror_is_a_secret_too(builder, monkeypatch):
    monkeypatch.setattr(
        bases, "machine_mirrors", lambda suite: (f"deb https://me:hunter2@mirror {suite} main",)
    )
    engine = Compiler()
    build(builder(engine), "h100")
    assert engine.secrets["h100-probe"]["apt"] == "deb https://me:hunter2@mirror trixie main\n"
    assert not any("hunter2" in text for text, _ in engine.bakes)


def test_machines_mirror_is_that_of_the_targets_own_suite(builder, monkeypatch):
    monkeypatch.setattr(bases, "machine_mirrors", lambda suite: (f"deb https://mirror {suite} main",))
    engine = Compiler()
    build(builder(engine), "cpu", "h100")  # Debian 12 and Debian 13
    assert engine.secrets["h100-probe"]["apt"] == "deb https://mirror trixie main\n"


FAILED = b"""\
 > [h100-flash-attn compile-flash-attn 2/3] RUN --mount=type=bind:
0.512 first words
3.101 flash_fwd.cu(7): error: identifier is undefined
------
ERROR: failed to solve: process "/bin/sh -c python" did not complete successfully: exit code: 1
"""


def test_failed_kernel_does_not_cost_the_others(builder):
    engine = Compiler(fails=["h100-flash-attn"], says=FAILED)
    work = builder(engine)
    with pytest.raises(BuildError) as caught:
        build(work, "h100")
    assert caught.value.exit_code == 6
    assert str(caught.value).startswith("h100-flash-attn compile-flash-attn 2/3: a kernel was not compiled\n")
    assert "    flash_fwd.cu(7): error: identifier is undefined" in str(caught.value)
    (log,) = (work.cache / "logs").iterdir()
    assert f"the whole log: {log}" in str(caught.value)
    assert caught.value.hint == "the same command again goes on from what is compiled"
    assert names_in(work) == ["probe", "sageattention"]
    assert len(engine.bakes) == 1, "no image without its kernels"

    again = Compiler()
    build(builder(again), "h100")
    assert again.compiled == ["h100-flash-attn"]


@pytest.mark.parametrize(
    ("jobs", "at_once", "remedy"),
    [
        (None, 2, "--jobs 1, or a lower --memory-share"),
        (8, 8, "--jobs 4, or a lower --memory-share"),
        (1, 1, "more memory or swap"),
    ],
)
def test_killed_compiler_is_told_with_the_budget_to_lower(builder, jobs, at_once, remedy):
    says = FAILED.replace(b"first words", f"{KILLED}, most likely because memory ran out".encode())
    work = builder(Compiler(fails=["h100-flash-attn"], says=says))
    with pytest.raises(
        BuildError, match=rf"a compiler was killed, .* memory ran out \({at_once} at once\)"
    ) as caught:
        build(work, "h100", jobs=jobs)
    assert f"the same command with {remedy}: it goes on from what is compiled" == caught.value.hint
    assert names_in(work) == ["probe", "sageattention"]


def test_the_compile_stages_words_for_a_killed_compiler_are_those_that_are_looked_for(root):
    assert f'print("{KILLED}' in (root / "templates/stages/measure.py").read_text()


def test_engine_that_dies_while_it_compiles(builder):
    work = builder(Compiler(fails=["h100-flash-attn"], says=b"rpc error: EOF\n", lives=False))
    with pytest.raises(EngineError, match="died during the build"):
        build(work, "h100")
    assert names_in(work) == ["probe", "sageattention"]


def test_disk_that_fills_up_while_it_compiles(builder):
    work = builder(Compiler(fails=["h100-flash-attn"], says=b"ERROR: write: no space left on device\n"))
    with pytest.raises(DiskError, match="the disk is full"):
        build(work, "h100")


def test_wheel_for_another_gpu_fails_the_build(builder):
    engine = Compiler(wrong={"gb10-sageattention": ["sm_120a"]})
    work = builder(engine)
    with pytest.raises(VerificationError, match=r"_fused\.so holds sm_120a, wanted sm_121a and no other"):
        build(work, "gb10")
    assert "sageattention" not in names_in(work)
    assert len(engine.bakes) == 1


def test_keep_going_builds_the_targets_whose_kernels_are_there(builder):
    engine = Compiler(fails=["h100-flash-attn"], says=FAILED)
    report = build(builder(engine), "ada", "cpu", "h100", keep_going=True)
    states = {o.target: o.state for o in report.outcomes}
    assert states == {"ada": "built", "cpu": "built", "h100": "failed"}
    assert [t for _, t in engine.bakes[1:]] == [("ada",), ("cpu",)], "h100 would be without its kernel"
    (failed,) = report.failed
    assert failed.stage == "kernels"
    assert "    flash_fwd.cu(7): error: identifier is undefined" in failed.lines


def test_engine_that_gives_no_wheel(builder, monkeypatch):
    engine = Compiler()
    monkeypatch.setattr(engine, "_compile", lambda name, target: False)
    with pytest.raises(
        BuildError, match="the engine gave no wheel of probe, sageattention, flash-attn; the whole log"
    ):
        build(builder(engine), "h100")


def test_registry_spares_the_compiling(builder, plans, said, tmp_path):
    engine = Compiler()
    build(builder(engine, Registry(tmp_path, plans["h100"], *KERNELS)), "h100")
    assert engine.compiled == []
    assert [w.split()[0] for w in said if "registry.example/x" in w] == list(KERNELS), "and says so, once"


# Where the upstream host is out of reach


def test_unreachable_upstream_is_replaced_loudly(builder, monkeypatch, said):
    unreachable(monkeypatch, "SageAttention")
    engine = Compiler()
    build(builder(engine), "h100")
    assert engine.compiled == ["h100-probe", "h100-flash-attn"], "flash-attn's source is on the index"
    assert set(engine.wheels) == {"probe", "flash-attn"}
    (told,) = (w for w in said if w.startswith("NOT "))
    assert told.startswith(
        "NOT sageattention 2.2.0 for h100: https://github.com/thu-ml/SageAttention.git cannot"
    )
    assert "sageattention==1.0.6 of the package index goes in instead" in told
    assert "--no-fallback" in told
    assert "--source sageattention=PATH" in told


def test_label_of_an_image_says_that_a_kernel_is_the_fallback(builder, monkeypatch):
    unreachable(monkeypatch, "SageAttention")
    engine = Compiler()
    seen = {}
    engine.built = lambda name, target: seen.update(
        dockerfile=(Path(target["context"]) / "Dockerfile").read_text(), contexts=set(target["contexts"])
    )
    build(builder(engine), "h100")
    (label,) = re.findall(r'imgbuild\.kernels="(.*)"', seen["dockerfile"])
    assert "sageattention=1.0.6@fallback:none" in label
    assert "compile-sageattention" not in seen["dockerfile"]
    assert not {"sageattention-src", "kernel-sageattention"} & seen["contexts"]


def test_no_fallback_makes_it_an_error(builder, monkeypatch):
    unreachable(monkeypatch, "SageAttention")
    engine = Compiler()
    work = builder(engine)
    with pytest.raises(NetworkError) as caught:
        build(work, "h100", fallback=False)
    assert caught.value.exit_code == 10
    assert re.search(
        r"SageAttention\.git cannot be reached, and --no-fallback forbids another in its place; "
        r"the wheelhouse has no sageattention for h100 \(key [0-9a-f]{16}\)",
        str(caught.value),
    )
    assert "--source sageattention=PATH" in caught.value.hint
    assert "imgbuild wheels pull" in caught.value.hint
    assert engine.bakes == []


def test_unreachable_upstream_does_not_matter_for_what_is_in_the_wheelhouse(
    builder, monkeypatch, said, tmp_path
):
    build(builder(Compiler()), "h100")
    said.clear()
    unreachable(monkeypatch, "SageAttention")
    engine = Compiler()
    build(builder(engine), "h100", fallback=False)
    assert engine.compiled == []
    assert set(engine.wheels) == set(KERNELS)
    assert not any(w.startswith("NOT ") for w in said)


def test_unreachable_upstream_is_asked_once(builder, monkeypatch, said):
    asked = []
    monkeypatch.setattr(
        sources, "upstream_reachable", lambda git, env: asked.append(git) or "Sage" not in git
    )
    build(builder(Compiler()), "h100", "ada", "gb10")
    assert len([git for git in asked if "Sage" in git]) == 1, "it takes its time to be out of reach"


def test_kernel_without_a_fallback(builder, monkeypatch, project):
    path = project.images / "comfyui.yaml"
    text = re.sub(r"      fallback: # Triton only(.*\n){3}", "", path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    unreachable(monkeypatch, "SageAttention")
    with pytest.raises(
        NetworkError, match=r"SageAttention\.git cannot be reached; the wheelhouse has no sage"
    ):
        build(builder(Compiler()), "h100")


def test_checkout_takes_the_upstreams_place(builder, monkeypatch, said, tmp_path):
    unreachable(monkeypatch, "SageAttention")
    tree = tmp_path / "sage"
    for name in ("setup.py", "csrc/a.cu", "assets/x.png", "build/old.so"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    engine = Compiler()
    seen = {}

    def compile_one(name, target):
        if name == "h100-sageattention":
            staged = Path(target["contexts"]["sageattention-src"])
            seen["files"] = {p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file()}
        return Compiler._compile(engine, name, target)

    monkeypatch.setattr(engine, "_compile", compile_one)
    work = builder(engine)
    build(work, "h100", sources={"sageattention": tree}, fallback=False)
    assert seen["files"] == {"setup.py", "csrc/a.cu"}
    assert not any(w.startswith("NOT ") for w in said)
    (entry,) = (e for e in work.wheelhouse.entries() if e.kernel == "sageattention")
    assert entry.components["source"].startswith("tree:")

    (tree / "csrc/a.cu").write_text("changed")
    again = Compiler()
    build(builder(again), "h100", sources={"sageattention": tree})
    assert again.compiled == ["h100-sageattention"], (
        "a changed checkout is another wheel, the others are the same"
    )


# An engine that cannot compile

NO_OVERRIDES = dataclasses.replace(BUILDKIT, overrides=False, link=False)


def test_engine_that_compiles_nothing(builder, monkeypatch):
    monkeypatch.setattr(bases, "bootstrap", lambda *a, **k: None)
    engine = Compiler(abilities=NO_OVERRIDES)
    with pytest.raises(ConfigError) as caught:
        build(builder(engine), "h100")
    assert (
        "recorded compiles no kernels, and the wheelhouse lacks probe for h100, sageattention for h100"
        in str(caught.value)
    )
    assert caught.value.hint.startswith("imgbuild wheels build")
    assert engine.bakes == []

    build(builder(Compiler()), "h100")
    again = Compiler(abilities=NO_OVERRIDES)
    build(builder(again), "h100")
    assert set(again.wheels) == set(KERNELS), "what is in the wheelhouse goes in all the same"


# Only wheels


def test_wheels_without_an_image(builder):
    engine = Compiler()
    entries = compile_(builder(engine), "gb10", "cpu")
    assert engine.compiled == ["gb10-probe", "gb10-sageattention", "gb10-flash-attn"]
    assert [t for _, t in engine.bakes] == [tuple(engine.compiled)]
    assert sorted(e.kernel for e in entries) == sorted(KERNELS)
    again = Compiler()
    assert compile_(builder(again), "gb10") == entries
    assert again.bakes == []


def test_wheels_of_one_kernel(builder, monkeypatch, said):
    unreachable(monkeypatch, "SageAttention", "ComfyUI")
    engine = Compiler()
    (entry,) = compile_(builder(engine), "gb10", kernels=("probe",), fallback=False)
    assert engine.compiled == ["gb10-probe"]
    assert entry.arches == ("sm_121",)
    assert set(json.loads(engine.secrets["gb10-probe"]["budget"])) == {"probe"}
    assert not any(w.startswith("NOT ") for w in said), "what nobody asked for may be out of reach"


def test_dry_run_compiles_nothing(builder, said):
    engine = Compiler()
    assert compile_(builder(engine), "gb10", dry_run=True, kernels=("probe", "flash-attn")) == ()
    assert [w.split(":")[0] for w in said] == ["probe 1.0.0 for gb10", "flash-attn 2.8.3.post2 for gb10"]
    assert all("would be compiled, key " in w for w in said)
    said.clear()
    build(builder(engine), "gb10", dry_run=True)
    assert len([w for w in said if "would be compiled" in w]) == 3
    assert engine.bakes == []


@pytest.mark.parametrize("options", [{"dry_run": True}, {"kernels": ("probe",)}])
def test_without_anything_to_compile_no_engine_is_needed(builder, monkeypatch, options):
    compile_(builder(Compiler()), "gb10", kernels=("probe",))
    engine = Compiler()

    def check():
        raise EngineError("no Docker engine can be reached")

    monkeypatch.setattr(engine, "check", check)
    compile_(builder(engine), "gb10", **options)
    assert engine.bakes == []


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def imgbuild(builder, tmp_path, project, monkeypatch, capsys):
    """The tool, with an engine that compiles in no time."""
    monkeypatch.setenv("IMGBUILD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IMGBUILD_WHEELHOUSE", raising=False)
    engine = Compiler()
    builder(engine)
    monkeypatch.setattr(docker, "Docker", lambda env: engine)

    def run(*words):
        code = main(["--project", str(project.root), "wheels", "build", *words])
        return code, *capsys.readouterr()

    run.engine = engine
    return run


def test_wheels_build(imgbuild):
    code, out, err = imgbuild("-t", "gb10", "--jobs", "3")
    assert code == 0
    assert imgbuild.engine.compiled == ["gb10-probe", "gb10-sageattention", "gb10-flash-attn"]
    for word in (*KERNELS, "sm_121a", "sm_120", "linux/arm64"):
        assert word in out
    assert "3 compilers at once" in err
    code, again, err = imgbuild("--all", "--kernel", "probe")
    assert code == 0
    assert imgbuild.engine.compiled[3:] == ["ada-probe", "h100-probe"]
    assert "sageattention" not in again


def test_wheels_build_dry_run(imgbuild):
    code, out, err = imgbuild("--dry-run", "-t", "gb10")
    assert (code, out) == (0, "")
    for words in ("probe 1.0.0", "sageattention 2.2.0", "flash-attn 2.8.3.post2"):
        assert re.search(rf"• {re.escape(words)} for gb10: would be compiled, key [0-9a-f]{{16}}\n", err)
    assert imgbuild.engine.bakes == []


def test_wheels_build_that_fails(imgbuild, monkeypatch):
    imgbuild.engine.fails, imgbuild.engine.words = {"h100-flash-attn"}, FAILED
    code, out, err = imgbuild("-t", "h100")
    assert (code, out) == (6, "")
    assert "error: h100-flash-attn compile-flash-attn 2/3: a kernel was not compiled" in err
    assert "hint: the same command again" in err
    unreachable(monkeypatch, "SageAttention")
    code, out, err = imgbuild("-t", "ada", "--no-fallback")
    assert (code, out) == (10, "")
    assert "--no-fallback forbids" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["-t", "gb10", "--kernel", "sage-attention"],
            3,
            "no kernel 'sage-attention'; did you mean 'sageattention'?",
        ),
        (["-t", "gb10", "--kernel", "xformers"], 3, "there are: flash-attn, probe, sageattention"),
        (["-t", "cpu"], 3, "none of these targets has a kernel"),
        (["-t", "gb01"], 3, "did you mean 'gb10'"),
        ([], 3, "no target was named"),
        (["--all", "-t", "gb10"], 2, "--all and --target exclude one another"),
        (["-t", "gb10", "--jobs", "0"], 2, "--jobs 0: at least one compiler has to run"),
        (["-t", "gb10", "--jobs", "two"], 2, "'two' is not a valid integer"),
        (["-t", "gb10", "--memory-share", "2"], 2, "--memory-share 2: write a share"),
        (["-t", "gb10", "--source", "sageattention=/nowhere"], 2, "there is no such folder"),
        (["-t", "gb10", "--source", "sage=/x"], 2, "no source 'sage'; did you mean 'sageattention'?"),
        (["-t", "gb10", "--wheelhouse", "https://x"], 2, "is no place in a registry"),
    ],
)
def test_wheels_build_with_bad_options(imgbuild, words, code, says):
    found, out, err = imgbuild(*words)
    assert (found, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert imgbuild.engine.bakes == []
