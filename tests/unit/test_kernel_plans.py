from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess

import pytest

from imgbuild import fatbin
from imgbuild.errors import ConfigError, DriftError
from imgbuild.kernels import (
    SHAPING,
    KernelPlan,
    KernelSource,
    pinned_kernel_source,
    plan_kernels,
    spell,
    tree_hash,
    wanted,
)
from imgbuild.lock import parse_lock, read_lock
from imgbuild.matrix import Edit, MatrixError, load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import Project
from imgbuild.render import Renderer
from imgbuild.sources import fallback_source, kernel_checkout, kernel_files
from imgbuild.verify import parse_kernels

# --- how an architecture is spelled --------------------------------------------------------------

# facts/kernels.md: what each project's setup.py reads, and what it compiles then.
SPELLINGS = {
    "sageattention": {  # splits at `;` and `,`; turns 9.0 and later into their `a` form by itself
        "8.0": ("8.0", "sm_80"),
        "8.6": ("8.6", "sm_86"),
        "8.9": ("8.9", "sm_89"),
        "9.0": ("9.0", "sm_90a"),
        "10.0": ("10.0", "sm_100a"),
        "12.0": ("12.0", "sm_120a"),
        "12.1": ("12.1", "sm_121a"),
    },
    "flash-attn": {  # compares with 80, 90, 100, 120 and nothing else
        "8.0": ("80", "sm_80"),
        "8.6": ("80", "sm_80"),
        "8.9": ("80", "sm_80"),
        "9.0": ("90", "sm_90"),
        "10.0": ("100", "sm_100"),
        "12.0": ("120", "sm_120"),
        "12.1": ("120", "sm_120"),
    },
    "probe": {
        "8.0": ("sm_80", "sm_80"),
        "8.6": ("sm_86", "sm_86"),
        "8.9": ("sm_89", "sm_89"),
        "9.0": ("sm_90", "sm_90"),
        "10.0": ("sm_100", "sm_100"),
        "10.3": ("sm_103", "sm_103"),
        "12.0": ("sm_120", "sm_120"),
        "12.1": ("sm_121", "sm_121"),
    },
}
VARIABLES = {
    "sageattention": "TORCH_CUDA_ARCH_LIST",
    "flash-attn": "FLASH_ATTN_CUDA_ARCHS",
    "probe": "IMGBUILD_PROBE_ARCH",
}
ROWS = [(name, cc, *words) for name, table in SPELLINGS.items() for cc, words in table.items()]


@pytest.mark.parametrize(("name", "capability", "written", "code"), ROWS)
def test_spelling(matrix, name, capability, written, code):
    found = spell(name, matrix.common.kernels[name], capability)
    assert (found.write, found.code) == (written, (code,))
    assert fatbin.runs(code, capability, "elf") == "yes"


def test_every_spelling_of_every_recipe_is_in_the_table(matrix):
    assert {name: set(k.spelling) for name, k in matrix.common.kernels.items()} == {
        name: set(table) for name, table in SPELLINGS.items()
    }
    assert {name: k.variable for name, k in matrix.common.kernels.items()} == VARIABLES


def test_traps_of_the_spellings(matrix):
    sage, flash = (matrix.common.kernels[n] for n in ("sageattention", "flash-attn"))
    # What 12.0 makes does not run on 12.1, although flash-attn's does: each says so for itself.
    assert fatbin.runs(*spell("sageattention", sage, "12.0").code, "12.1", "elf") == "no"
    assert spell("flash-attn", flash, "12.0") == spell("flash-attn", flash, "12.1")
    # flash-attn has no 89 and no 121: it would compile nothing at all, without a word.
    assert {s.write for s in flash.spelling.values()} == {"80", "90", "100", "120"}
    # Nor does a value ever name two: SageAttention drops what follows a blank.
    for kernel in matrix.common.kernels.values():
        for spelling in kernel.spelling.values():
            assert re.fullmatch(r"[a-z0-9._]+", spelling.write)
            assert len(spelling.code) == 1


@pytest.mark.parametrize("name", SPELLINGS)
def test_capability_that_nobody_can_spell(matrix, name):
    kernel = matrix.common.kernels[name]
    known = ", ".join(SPELLINGS[name])  # in the order of numbers: 9.0 before 10.0
    compilable = matrix.common.cuda["13.0"].compute_capabilities
    refused = [c for c in compilable if c not in SPELLINGS[name]]
    assert {"7.5", "8.7", "8.8", "11.0"} <= set(refused)
    for capability in (*refused, "9.0a", "121", "sm_121", "8.9 9.0", ""):
        with pytest.raises(ConfigError) as caught:
            spell(name, kernel, capability)
        assert caught.value.message == (
            f"{name} has no spelling for compute capability {capability}; it has for: {known}"
        )
        assert f"kernels.{name}.spelling" in caught.value.hint


@pytest.mark.parametrize(
    ("capability", "says"),
    [
        (
            "8.7",
            "kernels[1]: sageattention has no spelling for compute capability 8.7; nearest: 8.0, 8.6, 8.9",
        ),
        ("9.0a", "gpu.compute_capability: '9.0a' has the wrong form"),
        ("121", "gpu.compute_capability: '121' has the wrong form"),
        ("sm_90", "gpu.compute_capability: 'sm_90' has the wrong form"),
        ("8.9 9.0", "gpu.compute_capability: '8.9 9.0' has the wrong form"),
        ("8.9;9.0", "gpu.compute_capability: '8.9;9.0' has the wrong form"),
        ("9.0+PTX", "gpu.compute_capability: '9.0+PTX' has the wrong form"),
    ],
)
def test_target_with_a_trap_for_a_capability(project, capability, says):
    _replace(project.images / "targets/h100.yaml", '"9.0"', f'"{capability}"')
    with pytest.raises(MatrixError, match=re.escape(says)):
        load_matrix(project.images)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'write: "12.1"',
            'write: "12.0 12.1"',
            "sageattention.spelling.12.1.write: '12.0 12.1' has the wrong",
        ),
        ('write: "12.1"', 'write: "12.0;12.1"', "spelling.12.1.write: '12.0;12.1' has the wrong form"),
        ('write: "12.1"', 'write: "12.0,12.1"', "spelling.12.1.write: '12.0,12.1' has the wrong form"),
        ('write: "12.1"', "write: 12.1", 'spelling.12.1.write: must be text: write "12.1", in quotes'),
        ("code: [sm_121a]", "code: [121a]", "spelling.12.1.code[0]: '121a' has the wrong form"),
        ("code: [sm_121a]", "code: [compute_121a]", "'compute_121a' has the wrong form"),
        ("code: [sm_121a]", "code: [sm_121b]", "'sm_121b' has the wrong form"),
        ("code: [sm_121a]", "code: []", "spelling.12.1.code: needs at least 1 item"),
        ('"12.1": { write: "12.1"', '"121": { write: "12.1"', "'121' has the wrong form"),
        ('"12.1": { write: "12.1"', '"12.1a": { write: "12.1"', "'12.1a' has the wrong form"),
        pytest.param(
            '"12.1": { write: "12.1"',
            '"12.10": { write: "12.1"',
            "'12.10' has the wrong form",
        ),
        pytest.param(
            "code: [sm_121a]",
            "code: [sm_12345678901]",
            "'sm_12345678901' has the wrong form",
        ),
    ],
)
def test_recipe_with_a_trap_for_a_spelling(project, old, new, says):
    _replace(project.images / "comfyui.yaml", old, new)
    with pytest.raises(MatrixError, match=re.escape(says)):
        load_matrix(project.images)


def _replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --- the key -------------------------------------------------------------------------------------

COMPONENTS = (
    "architectures",
    "compiler",
    "cuda",
    "edits",
    "environment",
    "flags",
    "gcc",
    "headers",
    "kernel",
    "platform",
    "python",
    "recipe",
    "source",
    "stages",
    "tools",
    "torch",
)
"""A new one needs a line here, and a flip below."""


class Given:
    """Everything that a kernel's plan is made from, to be changed at one place."""

    def __init__(self, project):
        self.project = project
        self.matrix = load_matrix(project.images)
        self.lock = read_lock(project, self.matrix, self.target, self.matrix.comfyui.version)
        self.sources = {}

    @property
    def target(self):
        return self.matrix.targets["gb10"]

    def change(self, place, to):
        self.matrix = changed(self.matrix, place.split("/"), to)

    def retarget(self, place, to):
        self.change(f"targets/gb10/{place}", to)

    def repin(self, name, **to):
        """Another file of a package in the target's lock."""
        wheels = tuple(dataclasses.replace(w, **to) if w.name == name else w for w in self.lock.wheels)
        assert wheels != self.lock.wheels
        self.lock = dataclasses.replace(self.lock, wheels=wheels)

    def repin_file(self, name, wheel, **to):
        """The same in a lock that belongs to no target."""
        path = self.project.locks / name
        lock = parse_lock(path.read_text(), name=name)
        wheels = tuple(dataclasses.replace(w, **to) if w.name == wheel else w for w in lock.wheels)
        assert wheels != lock.wheels
        path.write_text(dataclasses.replace(lock, wheels=wheels).text("a test's"))

    def copy_lock(self, name, to):
        (self.project.locks / to).write_bytes((self.project.locks / name).read_bytes())

    def append(self, name, text="\n"):
        path = self.project.root / name
        path.write_text(path.read_text() + text)

    def kernels(self):
        made = plan_kernels(self.project, self.matrix, self.target, self.lock, self.sources)
        return {k.name: k for k in made}


def changed(value, place, to):
    """A frozen value with one thing in it replaced."""
    if not place:
        assert value != to
        return to
    head, *rest = place
    if isinstance(value, dict):
        return {**value, head: changed(value.get(head), rest, to)}
    if isinstance(value, tuple):
        return tuple(changed(v, rest, to) if str(i) == head else v for i, v in enumerate(value))
    return value.model_copy(update={head: changed(getattr(value, head), rest, to)})


SAGE, FLASH, PROBE = (f"common/kernels/{n}" for n in ("sageattention", "flash-attn", "probe"))


def other_python(given):
    given.change("common/bases/debian13/python", "3.12")
    given.copy_lock("kernel-tools-3.13.txt", "kernel-tools-3.12.txt")


def other_cuda(given):
    given.change("common/cuda/13.1", given.matrix.common.cuda["13.0"])
    given.copy_lock("toolchain-13.0.txt", "toolchain-13.1.txt")
    given.retarget("gpu/cuda", "13.1")


def other_base(given):
    given.change("common/bases/debian14", given.matrix.common.bases["debian13"])
    given.retarget("base", "debian14")


# name → the kernel that is looked at, what is changed, the components that must change with it (and no others)
FLIPS = {
    "version": ("sageattention", lambda g: g.change(f"{SAGE}/version", "2.3.0"), "kernel recipe"),
    "distribution": ("probe", lambda g: g.change(f"{PROBE}/distribution", "imgbuild-prob"), "kernel recipe"),
    "commit": ("sageattention", lambda g: g.change(f"{SAGE}/source/commit", "0" * 40), "source recipe"),
    "checkout": (
        "sageattention",
        lambda g: g.sources.update(sageattention=KernelSource(kind="tree", identity="tree:0")),
        "source",
    ),
    "hash of an sdist": (
        "flash-attn",
        lambda g: g.repin_file("source-flash-attn-2.8.3.post2.txt", "flash-attn", sha256="0" * 64),
        "source",
    ),
    "file of the project": ("probe", lambda g: g.append("kernels/probe/probe.cu"), "source"),
    "new text of an edit": ("sageattention", lambda g: g.change(f"{SAGE}/edits/0/new", "x"), "edits recipe"),
    "old text of an edit": ("sageattention", lambda g: g.change(f"{SAGE}/edits/0/old", "x"), "edits recipe"),
    "file of an edit": ("sageattention", lambda g: g.change(f"{SAGE}/edits/0/file", "x"), "edits recipe"),
    "no edit": ("sageattention", lambda g: g.change(f"{SAGE}/edits", ()), "edits recipe"),
    "torch's version": ("sageattention", lambda g: g.repin("torch", version="2.13.1"), "torch"),
    "torch's wheel": ("sageattention", lambda g: g.repin("torch", sha256="0" * 64), "torch"),
    "edit of torch": (
        "sageattention",
        lambda g: g.change("common/torch/0/edits", (Edit(package="torch", why="x", remove=("x",)),)),
        "torch",
    ),
    "python": ("sageattention", other_python, "python"),
    "platform": ("sageattention", lambda g: g.retarget("platform", "linux/amd64"), "platform"),
    "base": ("sageattention", other_base, "platform"),
    "glibc": ("sageattention", lambda g: g.change("common/bases/debian13/glibc", "2.42"), "platform"),
    "capability": ("sageattention", lambda g: g.retarget("gpu/compute_capability", "12.0"), "architectures"),
    "variable": ("sageattention", lambda g: g.change(f"{SAGE}/variable", "ARCHS"), "architectures recipe"),
    "value": ("probe", lambda g: g.change(f"{PROBE}/spelling/12.1/write", "x"), "architectures recipe"),
    "promised code": (
        "sageattention",
        lambda g: g.change(f"{SAGE}/spelling/12.1/code", ("sm_121",)),
        "architectures recipe",
    ),
    "environment": ("probe", lambda g: g.change(f"{PROBE}/environment", {"A": "1"}), "environment recipe"),
    "value in the environment": (
        "flash-attn",
        lambda g: g.change(f"{FLASH}/environment/FLASH_ATTENTION_FORCE_BUILD", "1"),
        "environment recipe",
    ),
    "flags": ("sageattention", lambda g: g.change(f"{SAGE}/flags", ("-O2",)), "flags recipe"),
    "order of flags": (
        "flash-attn",
        lambda g: g.change(f"{FLASH}/trim/flags", g.matrix.common.kernels["flash-attn"].trim.flags[::-1]),
        "flags recipe",
    ),
    "full": ("flash-attn", lambda g: g.change(f"{FLASH}/full", to=True), "flags edits recipe"),
    "cuda": ("sageattention", other_cuda, "cuda"),
    "compiler": (
        "sageattention",
        lambda g: g.repin_file("toolchain-13.0.txt", "nvidia-cuda-nvcc", version="13.0.99"),
        "compiler",
    ),
    "wheel of the compiler": (
        "sageattention",
        lambda g: g.repin_file("toolchain-13.0.txt", "nvidia-nvvm", sha256="0" * 64),
        "compiler",
    ),
    "gcc": ("sageattention", lambda g: g.change("common/bases/debian13/gcc", "14.3.0"), "gcc"),
    "tools": (
        "sageattention",
        lambda g: g.repin_file("kernel-tools-3.13.txt", "setuptools", version="81.0.1"),
        "tools",
    ),
    "wheel of a tool": (
        "sageattention",
        lambda g: g.repin_file("kernel-tools-3.13.txt", "ninja", sha256="0" * 64),
        "tools",
    ),
    "headers": ("sageattention", lambda g: g.repin("nvidia-cublas", sha256="0" * 64), "headers"),
    "fewer headers": (
        "sageattention",
        lambda g: g.change("common/cuda/13.0/headers", ("nvidia-cublas",)),
        "headers",
    ),
    "what imports": ("probe", lambda g: g.change(f"{PROBE}/imports", ("ctypes",)), "recipe"),
    "a reason in the recipe": (
        "sageattention",
        lambda g: g.change(f"{SAGE}/edits/0/why", "because"),
        "recipe",
    ),
    **{
        name: ("sageattention", lambda g, name=name: g.append(f"templates/stages/{name}"), "stages")
        for name in SHAPING
    },
}


@pytest.mark.parametrize(("name", "flip", "moves"), FLIPS.values(), ids=FLIPS)
def test_what_shapes_a_wheel_is_in_its_key(project, name, flip, moves):
    given = Given(project)
    before = given.kernels()[name]
    flip(given)
    after = given.kernels()[name]
    assert before.components.keys() == after.components.keys() == set(COMPONENTS)
    assert {c for c in COMPONENTS if before.components[c] != after.components[c]} == set(moves.split())
    assert before.key != after.key


def test_every_component_has_a_flip():
    assert {c for _, _, moves in FLIPS.values() for c in moves.split()} == set(COMPONENTS)


def test_a_key_is_one_that_the_wheelhouse_takes(plans):
    for kernel in plans["gb10"].kernels:
        assert re.fullmatch("[0-9a-f]{16}", kernel.key)


# What shapes nothing: how fast it is compiled, and for whom.
STAYS = {
    "budget": lambda g: g.change(f"{SAGE}/budget", {"MAX_JOBS": "1"}),
    "memory of a job": lambda g: g.change(f"{SAGE}/gb_per_job", 400.0),
    "name": lambda g: g.retarget("name", "spark2"),
    "title": lambda g: g.retarget("title", "another box"),
    "memory": lambda g: g.retarget("gpu/memory", "discrete"),
    "profiles": lambda g: g.retarget("profiles", {}),
    "other kernels": lambda g: g.retarget("kernels", ("sageattention",)),
    "epoch": lambda g: g.change("common/epoch", 0),
    "image": lambda g: g.change("common/image", "mine"),
    "nodes": lambda g: g.change("common/nodes", ("mine",)),
    "layers": lambda g: g.change("common/layers", ()),
    "ComfyUI": lambda g: g.change("common/comfyui/version", "9.9.9"),
    "edit of another package": lambda g: g.change(
        "common/torch/0/edits", (Edit(package="numpy", why="x", remove=("x",)),)
    ),
    "packages beside torch": lambda g: g.repin("numpy", sha256="0" * 64),
    "installer": lambda g: g.repin_file("tool-uv.txt", "uv", version="9.9.9"),
    "other recipe": lambda g: g.change(f"{FLASH}/full", to=True),
    "other lock": lambda g: g.repin_file("source-flash-attn-2.8.3.post2.txt", "flash-attn", sha256="0" * 64),
    **{
        name: lambda g, name=name: g.append(f"templates/stages/{name}")
        for name in ("gate.sh", "measure.py", "prove.py", "install.py", "settle.py", "code.py")
    },
    "Dockerfile": lambda g: g.append("templates/runtime.Dockerfile.j2"),
}


@pytest.mark.parametrize("change", STAYS.values(), ids=STAYS)
def test_what_shapes_nothing_is_in_no_key(project, change):
    given = Given(project)
    before = given.kernels()["sageattention"]
    change(given)
    after = given.kernels()["sageattention"]
    assert after.components == before.components
    assert after.key == before.key


def test_machine_that_builds_is_in_no_key(project, monkeypatch):
    before = Given(project).kernels()
    for name in (
        "MAX_JOBS",
        "NVCC_THREADS",
        "EXT_PARALLEL",
        "TORCH_CUDA_ARCH_LIST",
        "CXX",
        "SOURCE_DATE_EPOCH",
    ):
        monkeypatch.setenv(name, "1")
    for path in project.root.rglob("*"):
        os.utime(path, (1, 1))
    assert Given(project).kernels() == before


def test_another_comfyui_has_the_same_keys(root, matrix, plans):
    project = Project(root=root, writable=False)
    for name, target in matrix.targets.items():
        older = make_plan(project, matrix, target, source=fallback_source(matrix))
        assert older.source.version != plans[name].source.version
        assert [k.key for k in older.kernels] == [k.key for k in plans[name].kernels]


def test_a_budget_is_not_in_the_image_either(project):
    given = Given(project)
    before = make_plan(project, given.matrix, given.target)
    given.change(f"{SAGE}/gb_per_job", 400.0)
    given.change(f"{SAGE}/budget", {"MAX_JOBS": "1"})
    assert make_plan(project, given.matrix, given.target).labels == before.labels


def test_two_targets_of_one_shape_share_their_kernels(project):
    """Compiled once, whatever their names."""
    text = (project.images / "targets/h100.yaml").read_text()
    (project.images / "targets/h200.yaml").write_text(text.replace("name: h100", "name: h200"))
    for version in ("0.33.0", "0.3.75"):
        lock = (project.locks / f"h100-{version}.txt").read_text()
        (project.locks / f"h200-{version}.txt").write_text(lock)
    matrix = load_matrix(project.images)
    both = wanted(project, matrix, matrix.select(["h100", "h200"]))
    assert both == wanted(project, matrix, matrix.select(["h200"]))
    assert [name for name, _ in both] == ["probe", "sageattention", "flash-attn"]
    assert wanted(project, matrix, matrix.select(["h200"]), ["probe"]) == both[:1]


def test_what_compiles_to_the_same_code_has_one_key(project):
    """flash-attn's sm_120 runs on 12.0 and on 12.1; the others make code for just one."""
    given = Given(project)
    one = given.kernels()
    given.retarget("gpu/compute_capability", "12.0")
    other = given.kernels()
    assert {name for name in one if one[name].key == other[name].key} == {"flash-attn"}


def test_every_target_of_the_matrix_has_its_own_keys(plans):
    keys = [k.key for p in plans.values() for k in p.kernels]
    assert len(keys) == 9
    assert len(set(keys)) == 9


def test_full_takes_back_what_is_trimmed(project):
    given = Given(project)
    trimmed = given.kernels()["flash-attn"]
    assert "-DFLASHATTENTION_DISABLE_BACKWARD" in trimmed.flags
    assert {e["files"] for e in trimmed.edits} == {24}
    given.change(f"{FLASH}/full", to=True)
    full = given.kernels()["flash-attn"]
    assert (full.flags, full.edits) == ((), ())


# --- what follows from a kernel's plan -----------------------------------------------------------


def test_label():
    fields = dict.fromkeys((f.name for f in dataclasses.fields(KernelPlan)), "")
    fields |= {"name": "flash-attn", "version": "2.8.3.post2", "key": "0123456789abcdef"}
    compiled = KernelPlan(**{**fields, "kind": "sdist", "code": ("sm_80", "sm_90a")})
    assert compiled.label == "flash-attn=2.8.3.post2@0123456789abcdef:sm_80+sm_90a"
    fallback = KernelPlan(**{**fields, "kind": "fallback", "code": ()})
    assert fallback.label == "flash-attn=2.8.3.post2@fallback:none"


def test_labels_say_what_is_in_an_image(plans):
    for plan in plans.values():
        found = parse_kernels(plan.labels["imgbuild.kernels"])
        assert [(k.name, k.version, k.key, k.code) for k in found] == [
            (k.name, k.version, k.key, k.code) for k in plan.kernels
        ]
    assert plans["cpu"].labels["imgbuild.kernels"] == "none"
    assert re.fullmatch(
        r"probe=1\.0\.0@[0-9a-f]{16}:sm_121,sageattention=2\.2\.0@[0-9a-f]{16}:sm_121a,"
        r"flash-attn=2\.8\.3\.post2@[0-9a-f]{16}:sm_120",
        plans["gb10"].labels["imgbuild.kernels"],
    )


@pytest.fixture
def fallback(root, matrix):
    sources = {"sageattention": KernelSource(kind="fallback", identity="sageattention==1.0.6")}
    project = Project(root=root, writable=False)
    return make_plan(project, matrix, matrix.targets["h100"], kernel_sources=sources)


def test_label_of_a_fallback(fallback):
    assert ",sageattention=1.0.6@fallback:none," in fallback.labels["imgbuild.kernels"]
    found = parse_kernels(fallback.labels["imgbuild.kernels"])
    assert [(k.name, k.compiled) for k in found] == [
        ("probe", True),
        ("sageattention", False),
        ("flash-attn", True),
    ]


def test_a_fallback_compiles_nothing(root, matrix, fallback):
    (kernel,) = (k for k in fallback.kernels if k.name == "sageattention")
    assert not kernel.compiled
    assert kernel.requirements().startswith("sageattention==1.0.6 --hash=sha256:")
    assert ("sageattention", kernel.key) not in wanted(
        Project(root=root, writable=False), matrix, [matrix.targets["h100"]]
    )
    with pytest.raises(ConfigError, match=r"kernels\.flash-attn has no fallback"):
        make_plan(
            Project(root=root, writable=False),
            matrix,
            matrix.targets["h100"],
            kernel_sources={"flash-attn": KernelSource(kind="fallback", identity="")},
        )


def test_constraints_hold_the_kernels(plans, fallback):
    for plan in plans.values():
        lines = plan.constraints().splitlines()
        assert lines == sorted(lines)
        assert {f"{k.distribution}=={k.version}" for k in plan.kernels} <= set(lines)
    assert "imgbuild-probe==1.0.0\n" in plans["ada"].constraints()
    assert "sageattention==2.2.0\n" in plans["ada"].constraints()
    assert "sageattention==1.0.6\n" in fallback.constraints()


def test_licenses_of_an_image_name_those_of_its_kernels(plans):
    for plan in plans.values():
        words = plan.labels["org.opencontainers.image.licenses"].split(" AND ")
        assert {k.license for k in plan.kernels} <= set(words)


def test_what_the_compile_stages_read_holds_no_budget(root, matrix, plans):
    for plan in plans.values():
        files = Renderer(root / "templates").context(plan)
        for kernel in plan.kernels:
            recipe = json.loads(files[f"kernels/{kernel.name}.json"])
            assert set(recipe) == {
                "capability",
                "code",
                "edits",
                "environment",
                "flags",
                "imports",
                "name",
            }
            assert recipe["environment"][kernel.variable] == kernel.value
            names = {n for k in matrix.common.kernels.values() for n in k.budget}
            assert names
            assert not names & set(recipe["environment"])
            assert not re.search("jobs|parallel|threads", json.dumps(recipe), re.IGNORECASE)


# --- where a source comes from -------------------------------------------------------------------


def test_pinned_sources(root, matrix):
    project = Project(root=root, writable=False)
    found = {n: pinned_kernel_source(project, matrix, n) for n in matrix.common.kernels}
    assert {n: s.kind for n, s in found.items()} == {
        "sageattention": "git",
        "flash-attn": "sdist",
        "probe": "path",
    }
    assert re.fullmatch("[0-9a-f]{40}", found["sageattention"].identity)
    assert re.fullmatch("sha256:[0-9a-f]{64}", found["flash-attn"].identity)
    assert found["probe"].identity == tree_hash(root / "kernels/probe")


def test_source_that_is_not_there(project):
    given = Given(project)
    given.change(f"{PROBE}/source/path", "kernels/nothing")
    with pytest.raises(ConfigError, match=r"kernels\.probe\.source\.path: there is no folder"):
        given.kernels()
    given = Given(project)
    (project.locks / "source-flash-attn-2.8.3.post2.txt").unlink()
    with pytest.raises(DriftError, match=r"there is no .*source-flash-attn") as caught:
        given.kernels()
    assert caught.value.hint == "imgbuild lock"


@pytest.mark.parametrize(
    ("place", "to", "lock"),
    [
        ("common/kernel_tools", ("ninja",), "kernel-tools-3.13.txt"),
        ("common/cuda/13.0/toolchain", ("nvidia-cuda-nvcc==13.0.*",), "toolchain-13.0.txt"),
        (f"{FLASH}/source/sdist", "flash_attn==2.8.3.post2", "source-flash-attn-2.8.3.post2.txt"),
    ],
)
def test_lock_that_is_older_than_the_matrix(project, place, to, lock):
    given = Given(project)
    given.change(place, to)
    with pytest.raises(DriftError, match=re.escape(f"{lock} is older than the matrix")):
        given.kernels()


def test_hash_of_a_tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "csrc").mkdir(parents=True)
    (tree / "csrc/a.cu").write_text("a")
    hashes = [tree_hash(tree)]

    def stays():
        assert tree_hash(tree) == hashes[-1]

    def moves():
        hashes.append(tree_hash(tree))
        assert len(set(hashes)) == len(hashes)

    os.utime(tree / "csrc/a.cu", (1, 1))
    stays()
    (tree / "csrc/__pycache__").mkdir()
    (tree / "csrc/__pycache__/x.pyc").write_text("x")
    (tree / ".a.cu.swp").write_text("x")
    (tree / "empty").mkdir()
    stays()
    (tree / "csrc/a.cu").chmod(0o755)
    moves()
    (tree / "csrc/a.cu").write_text("b")
    moves()
    (tree / "csrc/a.cu").rename(tree / "csrc/b.cu")
    moves()
    (tree / "a.cu").write_text("")
    moves()


# --- a checkout as a source ----------------------------------------------------------------------


def git(tree, *words):
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    own |= {
        f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    argv = ["git", "-C", str(tree), "-c", "protocol.file.allow=always", *words]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, **own})
    return done.stdout.strip()


def fill(tree, files):
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def checkout(tmp_path):
    tree = tmp_path / "sage"
    fill(tree, {"setup.py": "setup()", "csrc/a.cu": "a", "assets/x.png": "x", ".gitignore": "*.o\n"})
    git(tmp_path, "init", "--quiet", "sage")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "x")
    return tree


@pytest.fixture
def recipe(matrix, checkout):
    """SageAttention's, with the checkout's own commit as the pinned one."""
    return changed(
        matrix.common.kernels["sageattention"], ["source", "commit"], git(checkout, "rev-parse", "HEAD")
    )


def look(recipe, tree):
    return kernel_checkout(recipe, tree, f"--source sageattention={tree}")


def test_clean_checkout_of_the_pinned_commit_is_the_commit(recipe, checkout):
    assert look(recipe, checkout) == KernelSource(kind="git", identity=recipe.source.commit)


# Nothing of it is read by the build.
HARMLESS = {
    "what is left out": {"assets/x.png": "y", "bench/b.py": "y"},
    "what git ignores": {"csrc/a.o": "y"},
}


@pytest.mark.parametrize("files", HARMLESS.values(), ids=HARMLESS)
def test_harmless_changes_leave_it_the_commit(recipe, checkout, files):
    fill(checkout, files)
    os.utime(checkout / "setup.py", (1, 1))
    assert look(recipe, checkout).kind == "git"


def _commit(tree):
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "y")


DIRTY = {
    "changed": lambda tree: fill(tree, {"csrc/a.cu": "b"}),
    "staged": lambda tree: (fill(tree, {"csrc/a.cu": "b"}), git(tree, "add", "--all")),
    "new": lambda tree: fill(tree, {"csrc/b.cu": "b"}),
    "removed": lambda tree: (tree / "csrc/a.cu").unlink(),
    "executable": lambda tree: (tree / "setup.py").chmod(0o755),
    "committed": lambda tree: (fill(tree, {"csrc/a.cu": "b"}), git(tree, "commit", "--quiet", "-am", "y")),
}


@pytest.mark.parametrize("change", DIRTY.values(), ids=DIRTY)
def test_changed_checkout_is_its_content(recipe, checkout, change):
    _commit(checkout)
    clean = look(recipe, checkout)
    assert clean.kind == "tree", "another commit, whatever it holds"
    change(checkout)
    found = look(recipe, checkout)
    assert found.kind == "tree"
    assert found.identity.startswith("tree:")
    assert found.identity != clean.identity
    assert look(recipe, checkout) == found


@pytest.mark.parametrize("change", DIRTY.values(), ids=DIRTY)
def test_changed_checkout_of_the_pinned_commit_is_not_the_commit(recipe, checkout, change):
    change(checkout)
    assert look(recipe, checkout).kind == "tree"


@pytest.mark.parametrize(
    "files",
    [*HARMLESS.values(), {"build/lib.so": "y", "sageattention3_blackwell/x.cu": "y"}],
    ids=[*HARMLESS, "what a build leaves"],
)
def test_content_is_what_the_build_reads(recipe, checkout, files):
    _commit(checkout)
    before = look(recipe, checkout)
    fill(checkout, files)
    os.utime(checkout / "setup.py", (1, 1))
    assert look(recipe, checkout) == before


def test_content_is_the_same_without_git(recipe, checkout):
    _commit(checkout)
    with_git = look(recipe, checkout)
    (checkout / ".git").rename(checkout.parent / "gone")
    assert look(recipe, checkout) == with_git
    files = kernel_files(checkout, recipe, "--source")
    assert files == (".gitignore", "csrc/a.cu", "setup.py")


def test_kernel_without_a_pinned_commit(matrix, checkout):
    assert look(matrix.common.kernels["flash-attn"], checkout).kind == "tree"


def test_folder_that_is_no_checkout(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"--source sageattention=\S+/nothing: there is no such folder"):
        look(recipe, tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"--source sageattention=\S+: has no setup\.py") as caught:
        look(recipe, tmp_path)
    assert caught.value.hint == "name the folder that holds it"


def test_link_to_a_folder_is_refused(recipe, checkout):
    (checkout / "csrc/link").symlink_to("..")
    with pytest.raises(ConfigError, match=r"csrc/link is a link to a folder, which is not followed"):
        look(recipe, checkout)


def test_files_of_a_submodule_go_in(recipe, checkout, tmp_path):
    module = tmp_path / "cutlass"
    fill(module, {"include/cutlass.h": "c"})
    git(tmp_path, "init", "--quiet", "cutlass")
    git(module, "add", "--all")
    git(module, "commit", "--quiet", "--message", "x")
    git(checkout, "submodule", "--quiet", "add", str(module), "csrc/cutlass")
    assert "csrc/cutlass/include/cutlass.h" in kernel_files(checkout, recipe, "--source")
