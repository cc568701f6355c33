from __future__ import annotations

import io
import json
import os
import re
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from fatbins.synthetic import AARCH64, PTX, A, container, elf, entry, library, wheel
from hypothesis import given
from hypothesis import strategies as st

from imgbuild import proc
from imgbuild.cli import main
from imgbuild.engines import Image
from imgbuild.engines.docker import Docker
from imgbuild.engines.podman import Podman
from imgbuild.errors import EngineError, SelectionError, VerificationError
from imgbuild.verify import (
    Content,
    Expected,
    LabelledKernel,
    expect,
    judge,
    parse_kernels,
    raise_for,
    read_package,
    read_tar,
    recipe_code,
    verify_image,
    verify_wheel,
)

EXACT = Path(__file__).with_name("fatbins") / "exact.so"
SITE = "opt/venv/lib/python3.13/site-packages"
KEY = "0123456789abcdef"


# --- labels --------------------------------------------------------------------------------------


def labelled(name, version, key, *code):
    return LabelledKernel(name=name, version=version, key=key, code=code)


@pytest.mark.parametrize(
    ("text", "kernels"),
    [
        ("none", []),
        ("", []),
        (f"probe=1.0.0@{KEY}:sm_121", [labelled("probe", "1.0.0", KEY, "sm_121")]),
        (
            f"flash-attn=2.8.3.post2@{KEY}:sm_80+sm_90a,sageattention=1.0.6@fallback:none",
            [
                labelled("flash-attn", "2.8.3.post2", KEY, "sm_80", "sm_90a"),
                labelled("sageattention", "1.0.6", None),
            ],
        ),
        (f"x=1!2.0+cu130.a@{KEY * 4}:sm_120f", [labelled("x", "1!2.0+cu130.a", KEY * 4, "sm_120f")]),
    ],
)
def test_kernels_of_the_label(text, kernels):
    assert parse_kernels(text) == tuple(kernels)
    assert [k.compiled for k in parse_kernels(text)] == [k.key is not None for k in kernels]


@pytest.mark.parametrize(
    "item",
    [
        "probe",
        "probe=1.0.0",
        f"probe@{KEY}:sm_121",
        "probe=1.0.0@:sm_121",
        f"probe=1.0.0@{KEY}",
        f"probe=1.0.0@{KEY}:",
        f"probe=1.0.0@{KEY}:none",
        f"probe=1.0.0@{KEY}:compute_80",
        f"probe=1.0.0@{KEY}:sm_80+",
        f"probe=1.0.0@{KEY}:sm_80;sm_90",
        "probe=1.0.0@fallback:sm_80",
        "probe=1.0.0@KEY:sm_80",
        f" probe=1.0.0@{KEY}:sm_80",
        f"probe=1.0.0@{KEY}:sm_80\n",
        "",
    ],
)
def test_label_that_cannot_be_read(item):
    with pytest.raises(VerificationError, match="which is not name=version@key:architectures") as raised:
        parse_kernels(f"x=1@{KEY}:sm_80,{item}")
    assert repr(item) in raised.value.message


@given(st.text())
def test_labels_at_random(text):
    try:
        parse_kernels(text)
    except VerificationError as e:
        assert e.exit_code == 7


def image(labels=None, platform="linux/amd64", **more):
    own = {
        "imgbuild.target": "h100",
        "imgbuild.platform": "linux/amd64",
        "imgbuild.compute-capability": "9.0",
        "imgbuild.kernels": f"probe=1.0.0@{KEY}:sm_90",
    }
    own = own if labels is None else labels
    for name, value in more.items():
        own[f"imgbuild.{name.replace('_', '-')}"] = value
    own = {k: v for k, v in own.items() if v is not None}
    return Image(tag="comfyui:x", digest="sha256:1", platform=platform, labels=own, size=1)


def test_what_labels_promise(matrix):
    found = expect(image(), matrix=matrix, target=None, capability=None)
    assert (found.target, found.capability, found.machine, found.warnings) == ("h100", "9.0", "x86_64", ())
    assert found.kernels == (labelled("probe", "1.0.0", KEY, "sm_90"),)
    assert expect(image(), matrix=matrix, target=matrix.targets["h100"], capability="9.0") == found


def test_image_without_a_gpu(matrix):
    found = expect(
        image(target="cpu", compute_capability="none", kernels="none"),
        matrix=matrix,
        target=None,
        capability=None,
    )
    assert (found.target, found.capability, found.kernels) == ("cpu", None, ())


def test_target_of_another_matrix(matrix):
    found = expect(
        image(target="b200", compute_capability="10.0"), matrix=matrix, target=None, capability=None
    )
    assert (found.target, found.capability) == ("b200", "10.0")
    assert found.warnings[0].startswith("the matrix has no target 'b200'")


def test_image_of_somebody_else(matrix):
    with pytest.raises(VerificationError, match=r"has no label imgbuild\.target: it is not one of ours"):
        expect(image(labels={}), matrix=matrix, target=None, capability=None)
    found = expect(image(labels={}), matrix=matrix, target=matrix.targets["ada"], capability=None)
    assert (found.target, found.capability, found.kernels) == ("ada", "8.9", ())
    assert expect(image(labels={}), matrix=matrix, target=None, capability="8.0").capability == "8.0"


@pytest.mark.parametrize(
    ("labels", "target", "capability", "says"),
    [
        ({}, "ada", None, "target: the label imgbuild.target says h100, --target says ada"),
        (
            {"platform": "linux/arm64"},
            None,
            None,
            "platform: the label imgbuild.platform says linux/amd64, the image itself says linux/arm64",
        ),
        (
            {"target": "gb10", "compute_capability": "12.1"},
            None,
            None,
            "the image itself says linux/amd64, target gb10 says linux/arm64",
        ),
        (
            {"compute_capability": "8.9"},
            None,
            None,
            "compute capability: the label imgbuild.compute-capability says 8.9, target h100 says 9.0",
        ),
        ({}, None, "12.1", "target h100 says 9.0, --compute-capability says 12.1"),
        ({"compute_capability": "none"}, None, None, "says none, target h100 says 9.0"),
        ({"target": "cpu"}, None, None, "says 9.0, target cpu says none"),
    ],
)
def test_contradictions(matrix, labels, target, capability, says):
    asked = matrix.targets[target] if target else None
    with pytest.raises(VerificationError, match=re.escape(says)):
        expect(image(**labels), matrix=matrix, target=asked, capability=capability)


# --- reading an image ----------------------------------------------------------------------------


def tar(files, links=(), hard=()):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind, pairs in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, hard)):
            for name, target in pairs:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                archive.addfile(member)
    return raw.getvalue()


def installed(name, version, files, folder=SITE):
    """A distribution as an installer leaves it."""
    info = f"{folder}/{name.replace('-', '_')}-{version}.dist-info"
    record = "".join(f"{f},sha256=x,1\n" for f in files)
    return {
        **{os.path.normpath(f"{folder}/{f}"): content for f, content in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 0\n".encode(),
        f"{info}/RECORD": record.encode(),
    }


def read(files, **more):
    return read_tar(io.BytesIO(tar(files, **more)), say=lambda text: None)


def test_every_shared_object_is_opened():
    torch = installed("torch", "2.13.0", {"torch/lib/libtorch_cuda.so": library(90), "torch/version.py": b""})
    content = read(
        {
            **torch,
            "./usr/lib/libc.so.6": library(),
            "usr/lib/libm.so": b"GROUP ( libm.so.6 )",
            "usr/lib/libempty.so": b"",
            "usr/bin/python3": library(80),
            "usr/share/x.so.txt": b"text",
            "broken.so": library(80)[:-7],
        },
        links=[("usr/lib/libc.so", "libc.so.6")],
        hard=[("usr/lib64/libc.so.6", "./usr/lib/libc.so.6"), ("usr/lib64/libm.so", "usr/lib/libm.so")],
    )
    cuda = f"/{SITE}/torch/lib/libtorch_cuda.so"
    assert set(content.libraries) == {cuda, "/usr/lib/libc.so.6", "/usr/lib64/libc.so.6"}
    assert content.libraries[cuda].machine == "x86_64"
    assert content.unreadable == {"/broken.so": "is truncated: its section headers lie behind its end"}
    (package,) = content.packages
    assert (package.name, package.version, package.files) == ("torch", "2.13.0", {cuda})


@pytest.mark.parametrize("size", [0, 100, 600, 1024, 1500, 2000, 2048])
def test_stream_that_ends_early(size):
    whole = tar({"a.so": library(80), "b.so": library(80)})[: 4 * 512 + 1024]
    assert read_tar(io.BytesIO(whole), say=print).libraries
    with pytest.raises(EngineError, match="did not arrive whole"):
        read_tar(io.BytesIO(whole[:size]), say=print)


def test_stream_that_is_no_tar():
    with pytest.raises(EngineError, match="did not arrive whole"):
        read_tar(io.BytesIO(b"error: no space left\n" * 100), say=print)


def test_progress_is_told(monkeypatch):
    said = []
    monkeypatch.setattr("imgbuild.verify._TALK", -1)
    read_tar(io.BytesIO(tar({"a.so": library(80), "b": bytes(5000)})), say=said.append)
    assert said == ["0.0 GB read, 0 shared objects so far", "0.0 GB read, 1 shared objects so far"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"METADATA": b"Name: x\n"}, None),
        ({"METADATA": b"Version: 1\nName: X_y.z\n", "RECORD": b""}, ("x-y-z", "1", set())),
        (
            {"METADATA": b"Name: x\nVersion: 1\n\nName: y\n", "RECORD": b'"a,b.so",,\n\n'},
            ("x", "1", {"/s/a,b.so"}),
        ),
        (
            {"METADATA": b"Name: x\nVersion: 1\n", "RECORD": b"../bin/../l/a.so.1,,\r\n/abs.so,,\n"},
            ("x", "1", {"/l/a.so.1", "/abs.so"}),
        ),
        (
            {"METADATA": b"Name: x\nVersion: 1\n", "RECORD": b"\xff\x00a.so,,\n"},
            ("x", "1", {"/s/\ufffd\x00a.so"}),
        ),
    ],
)
def test_packages(files, found):
    package = read_package("/s/x-1.dist-info", files)
    assert (package and (package.name, package.version, set(package.files))) == found


# --- judging -------------------------------------------------------------------------------------

GB10 = Expected(
    target="gb10", capability="12.1", machine="aarch64", kernels=(labelled("probe", "1.0.0", KEY, "sm_121"),)
)


def judged(files, expected=GB10):
    return judge("x", read(files), expected, distributions={"probe": "imgbuild-probe"})


def arm(*archs):
    return library(*archs, machine=AARCH64)


PROBE = installed(
    "imgbuild-probe", "1.0.0", {"imgbuild_probe/libprobe.so": arm(121), "imgbuild_probe/a.py": b""}
)
TORCH = installed(
    "torch", "2.13.0", {"torch/lib/libtorch_cuda.so": arm(80, 120), "torch/lib/libc10.so": arm()}
)


def test_sound_image():
    blas = installed("nvidia-cublas", "13.1", {"nvidia/libcublas.so.13": arm(120, (121, A))})
    jit = installed(
        "nvidia-cufile",
        "1",
        {"nvidia/libcufile.so.0": elf((".nv_fatbin", container(entry(PTX, 86))), machine=AARCH64)},
    )
    report = judged({**blas, **jit, **TORCH, **PROBE, "lib/libc.so.6": arm()})
    assert report.problems == report.warnings == ()
    assert [(r.file.rpartition("/")[2], r.package, r.role, r.holds, r.runs) for r in report.rows] == [
        ("libprobe.so", "imgbuild-probe 1.0.0", "kernel", "sm_121", "yes"),
        ("libc10.so", "torch 2.13.0", "torch", "no GPU code", "none"),
        ("libtorch_cuda.so", "torch 2.13.0", "torch", "sm_80, sm_120", "yes"),
        ("libc.so.6", None, "other", "no GPU code", "none"),
        ("libcublas.so.13", "nvidia-cublas 13.1", "other", "sm_120, sm_121a", "yes"),
        ("libcufile.so.0", "nvidia-cufile 1", "other", "PTX compute_86", "jit"),
    ]
    raise_for([report])


def probe(*archs, version="1.0.0", machine=AARCH64):
    return installed(
        "imgbuild-probe", version, {"imgbuild_probe/libprobe.so": library(*archs, machine=machine)}
    )


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (TORCH, "the label imgbuild.kernels says probe 1.0.0, and no such package is installed"),
        (probe(121, version="1.0.1"), "the label imgbuild.kernels says probe 1.0.0, and 1.0.1 is installed"),
        (probe(), "says probe 1.0.0 for sm_121, and it holds no GPU code"),
        (probe(90), "libprobe.so holds sm_90, wanted sm_121 and no other, that runs on 12.1"),
        (probe(120), "libprobe.so holds sm_120, wanted sm_121 and no other, that runs on 12.1"),
        (probe(121, 90), "libprobe.so holds sm_90, sm_121, wanted sm_121 and no other, that runs on 12.1"),
        (probe(121, machine=62), "libprobe.so is for x86_64, the image for aarch64"),
        (
            {**PROBE, "usr/lib/libx86.so.1": library()},
            "/usr/lib/libx86.so.1 is for x86_64, the image for aarch64",
        ),
        (
            {**PROBE, **installed("torch", "2.13.0", {"torch/lib/libtorch_cuda.so": arm(90, (120, A))})},
            "libtorch_cuda.so holds sm_90, sm_120a: nothing of it runs on 12.1",
        ),
        (
            {**PROBE, **installed("torch", "2.13.0", {"torch/lib/libtorch_cuda.so": arm(120)[:-5]})},
            "libtorch_cuda.so is truncated: its section headers lie behind its end",
        ),
        (
            installed("imgbuild-probe", "1.0.0", {"a.so": arm(121), "b.so": arm(121)[:-5]}),
            "b.so is truncated: its section headers lie behind its end",
        ),
    ],
)
def test_unsound_image(files, says):
    report = judged(files)
    (problem,) = report.problems
    assert problem.endswith(says)
    with pytest.raises(VerificationError, match=re.escape(f"x: {problem}")):
        raise_for([report])


def test_other_libraries_are_warnings():
    stub = installed("nvidia-cufft", "12", {"nvidia/libcufftw.so.12": arm(75)})
    report = judged({**PROBE, **stub, "opt/odd.so": arm(120)[:-5]})
    assert report.problems == ()
    assert report.warnings == (
        f"/{SITE}/nvidia/libcufftw.so.12 holds sm_75: nothing of it runs on 12.1",
        "/opt/odd.so is truncated: its section headers lie behind its end",
    )
    assert {r.runs for r in report.rows} == {"yes", "no", "unreadable"}


def test_fallback_holds_nothing_compiled():
    expected = Expected(
        capability="12.1", machine="aarch64", kernels=parse_kernels("sageattention=1.0.6@fallback:none")
    )
    assert judged(installed("sageattention", "1.0.6", {"sageattention/a.py": b""}), expected).problems == ()
    report = judged(installed("sageattention", "1.0.6", {"sageattention/a.so": arm(121)}), expected)
    (problem,) = report.problems
    assert problem.endswith("sageattention/a.so holds sm_121")
    assert "with nothing compiled" in problem


def test_image_for_no_gpu_is_only_listed():
    report = judged({**TORCH, "a.so": arm(75)}, Expected(target="cpu", machine="aarch64"))
    assert (report.problems, report.warnings) == ((), ())
    assert {r.runs for r in report.rows} == {"none", "unasked"}


class Store:
    """An engine with one image."""

    name = "store"

    def __init__(self, held, content):
        self.held, self.content, self.open = held, content, 0

    def find(self, tag):
        return self.held if tag == self.held.tag else None

    def layers(self, image):
        return None

    @contextmanager
    def export(self, tag):
        self.open += 1
        try:
            yield io.BytesIO(self.content)
        finally:
            self.open -= 1


def with_kernels(matrix, *names):
    """The matrix with these kernels in h100."""
    target = matrix.targets["h100"].model_copy(update={"kernels": names})
    return matrix.model_copy(update={"targets": {**matrix.targets, "h100": target}})


def test_a_kernel_that_the_label_forgets_is_a_problem(matrix):
    files = installed("imgbuild-probe", "1.0.0", {"p.so": library(90)})
    store = Store(image(), tar(files))
    wanted = with_kernels(matrix, "probe", "flash-attn")
    report = verify_image(store, "comfyui:x", matrix=wanted, target=None, capability=None, say=lambda _: None)
    assert report.problems == ("the label imgbuild.kernels has no flash-attn, which target h100 has",)


def test_verify_image(matrix):
    matrix = with_kernels(matrix, "probe")
    files = {**installed("imgbuild-probe", "1.0.0", {"p.so": library(90)}), "lib/libc.so.6": library()}
    store = Store(image(), tar(files))
    said = []
    report = verify_image(store, "comfyui:x", matrix=matrix, target=None, capability=None, say=said.append)
    assert (report.subject, report.target, report.capability, report.problems) == (
        "comfyui:x",
        "h100",
        "9.0",
        (),
    )
    assert said == ["reading every file of comfyui:x"]
    assert json.loads(json.dumps(report.as_json()))["files"][0] == {
        "file": f"/{SITE}/p.so",
        "package": "imgbuild-probe 1.0.0",
        "role": "kernel",
        "machine": "x86_64",
        "code": [{"kind": "elf", "arch": "sm_90", "count": 1, "size": 8}],
        "runs": "yes",
    }
    store.content = store.content[:900]
    with pytest.raises(EngineError):
        verify_image(store, "comfyui:x", matrix=matrix, target=None, capability=None, say=said.append)
    assert store.open == 0
    with pytest.raises(SelectionError, match="store has no image comfyui:y"):
        verify_image(store, "comfyui:y", matrix=matrix, target=None, capability=None, say=said.append)


# --- engines -------------------------------------------------------------------------------------


class Container:
    def __init__(self, chunks):
        self.chunks, self.removed = chunks, []

    def export(self, chunk_size):
        yield from self.chunks

    def remove(self, **options):
        self.removed.append(options)


class Client:
    """What Docker's SDK offers of it."""

    def __init__(self, chunks):
        self.container, self.created = Container(chunks), []
        self.containers = self.images = self

    def get(self, tag):
        from docker.errors import ImageNotFound

        if tag != "x:1":
            raise ImageNotFound("no")
        found = type("Found", (), {})()
        found.id, found.labels = "sha256:1", None
        found.attrs = {"Os": "linux", "Architecture": "arm64", "Size": 1}
        return found

    def create(self, tag, **options):
        self.created.append((tag, options))
        return self.container


def docker(chunks):
    engine = Docker({})
    engine._client = Client(chunks)
    return engine, engine._client


GONE = [{"v": True, "force": True}]


def test_docker_gives_out_a_file_system():
    whole = tar({"a.so": library(80), "b": bytes(3000)})
    engine, client = docker([whole[:700], b"", whole[700:701], whole[701:]])
    with engine.export("x:1") as stream:
        assert set(read_tar(stream, say=print).libraries) == {"/a.so"}
    assert client.created == [("x:1", {"command": ["none"], "platform": "linux/arm64"})]
    assert client.container.removed == GONE


def broken_off():
    from requests.exceptions import ChunkedEncodingError

    yield tar({"a": bytes(3000)})[:800]
    raise ChunkedEncodingError("Connection broken")


def test_docker_that_stops_halfway():
    engine, client = docker(broken_off())
    with (
        pytest.raises(EngineError, match="Docker stopped halfway: Connection broken"),
        engine.export("x:1") as stream,
    ):
        read_tar(stream, say=print)
    assert client.container.removed == GONE


def test_docker_leaves_nothing_behind():
    engine, client = docker([b"x"])
    with pytest.raises(KeyboardInterrupt), engine.export("x:1"):
        raise KeyboardInterrupt
    assert client.container.removed == GONE
    with pytest.raises(EngineError, match="Docker has no image y:1"), engine.export("y:1"):
        pass


def test_docker_that_makes_no_container():
    from docker.errors import APIError

    engine, client = docker([])

    def refuse(*args, **kwargs):
        raise APIError("no space")

    client.create = refuse
    with pytest.raises(EngineError, match="cannot make a container of x:1: no space"), engine.export("x:1"):
        pass


@pytest.fixture
def podman(monkeypatch):
    """Podman's command line, acted."""
    calls = []
    acted = {"content": tar({"a.so": library(80), "b": bytes(3_000_000)}), "fails": False}

    def run(argv, *, env, check=True, timeout=None):
        words = [w for w in argv[1:] if w not in ("--runtime", "runc", "--cgroup-manager", "cgroupfs")]
        calls.append(words[0])
        if words[0] == "image":
            found = [{"Id": "1", "Os": "linux", "Architecture": "amd64"}]
            missing = "y:1" in words[-1]
            return proc.Result(returncode=int(missing), stdout=json.dumps(found), stderr="")
        if words[0] == "export" and acted["fails"]:
            raise proc.ProcError(["podman"], 125, "Error: no such container")
        if words[0] == "export":
            Path(words[2]).write_bytes(acted["content"])
        return proc.Result(returncode=0, stdout="a warning\nabcdef\n", stderr="")

    monkeypatch.setattr(proc, "run", run)
    return calls, acted


def test_podman_gives_out_a_file_system(podman):
    calls, _ = podman
    with Podman({}).export("x:1") as stream:
        assert set(read_tar(stream, say=print).libraries) == {"/a.so"}
    assert calls == ["image", "create", "export", "rm"]


def test_podman_whose_rest_nobody_wants(podman):
    calls, _ = podman
    with pytest.raises(ZeroDivisionError), Podman({}).export("x:1") as stream:
        raise ZeroDivisionError(stream.read(10))
    assert calls == ["image", "create", "export", "rm"]
    with Podman({}).export("x:1"):
        pass


def test_podman_that_fails(podman):
    calls, acted = podman
    acted["fails"] = True
    says = "Podman stopped while it gave out x:1: Error: no such container"
    with pytest.raises(EngineError, match=says), Podman({}).export("x:1") as stream:
        read_tar(stream, say=print)
    assert calls == ["image", "create", "export", "rm"]
    with pytest.raises(EngineError, match="Podman has no image y:1"), Podman({}).export("y:1"):
        pass


# --- wheels and the command ----------------------------------------------------------------------


def test_wheel_report(tmp_path):
    path = wheel(tmp_path / "k-1-x.whl", {"k/a.so": arm((121, A)), "k/b.so": arm(90), "k/c.so": library()})
    report = verify_wheel(path, Expected(capability="12.1", machine="aarch64"))
    assert report.problems == (
        "k/c.so is for x86_64, not aarch64",
        "k/b.so holds sm_90, wanted GPU code that runs on 12.1",
    )
    assert [r.runs for r in report.rows] == ["yes", "no", "none"]
    report = verify_wheel(path, Expected())
    assert (report.problems, [r.runs for r in report.rows]) == ((), ["unasked", "unasked", "none"])
    path.write_bytes(b"nonsense")
    (problem,) = verify_wheel(path, Expected()).problems
    assert problem.startswith("is neither an ELF file nor a sound wheel")


def test_recipe_says_what_a_wheel_must_hold(matrix, tmp_path):
    version = matrix.common.kernels["flash-attn"].version
    path = tmp_path / f"flash_attn-{version}-cp313-cp313-linux_aarch64.whl"
    assert recipe_code(path, matrix, matrix.targets["gb10"]) == ("sm_120",)
    assert recipe_code(path, matrix, matrix.targets["ada"]) == ("sm_80",)
    assert recipe_code(path, matrix, matrix.targets["cpu"]) == ()
    assert recipe_code(Path("flash_attn-1.0-py3-none-any.whl"), matrix, matrix.targets["ada"]) == ()
    assert recipe_code(Path("numpy-2.0-py3-none-any.whl"), matrix, matrix.targets["ada"]) == ()
    wheel(path, {"a.so": library(80), "b.py": ""})
    assert verify_wheel(path, Expected(capability="8.9"), code=("sm_80",)).problems == ()
    (problem,) = verify_wheel(path, Expected(capability="12.1"), code=("sm_120",)).problems
    assert problem == "a.so holds sm_80, wanted sm_120 and no other, that runs on 12.1"
    wheel(path, {"b.py": ""})
    assert verify_wheel(path, Expected(), code=("sm_80",)).problems == ("holds no GPU code, wanted sm_80",)


def cli(root, *words):
    return main(["--project", str(root), "verify", *map(str, words)])


def test_command_on_wheels(root, tmp_path, capsys):
    good = wheel(tmp_path / "good-1-x.whl", {"k/a.so": arm((121, A)), "k/b.so": arm()})
    bad = wheel(tmp_path / "bad-1-x.whl", {"k/a.so": arm(90)})
    assert cli(root, good, "--target", "gb10") == 0
    out = capsys.readouterr().out
    assert "runs on 12.1?" in out
    assert "good-1-x.whl for gb10: 1 shared objects without GPU code" in out
    assert "k/b.so" not in out
    assert cli(root, good, "--compute-capability", "12.1", "--all") == 0
    assert "k/b.so" in capsys.readouterr().out
    assert cli(root, good, bad, "--target", "gb10") == 7
    err = capsys.readouterr().err
    assert "error: bad-1-x.whl: k/a.so holds sm_90, wanted GPU code that runs on 12.1" in err
    assert cli(root, EXACT, "--target", "gb10") == 7
    assert "exact.so: exact.so is for x86_64, not aarch64" in capsys.readouterr().err
    assert cli(root, EXACT, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["files"][0]["runs"], report["problems"]) == ("unasked", [])
    empty = wheel(tmp_path / "empty-1-x.whl", {"k/a.py": ""})
    assert cli(root, empty) == 0
    assert capsys.readouterr().out == "empty-1-x.whl: no shared object\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere.whl"], 2, "there is no file nowhere.whl"),
        ([EXACT, "--compute-capability", "sm_121"], 2, "--compute capability 'sm_121': write it as 12.1"),
        ([EXACT, "--target", "gb01"], 3, "did you mean 'gb10'"),
        (
            [EXACT, "--target", "gb10", "--compute-capability", "9.0"],
            7,
            "gb10 has compute capability 12.1, not 9.0",
        ),
        ([], 2, "Missing argument"),
    ],
)
def test_command_that_makes_no_sense(root, capsys, words, code, says):
    assert cli(root, *words) == code
    assert says in capsys.readouterr().err


def test_command_on_an_image(root, monkeypatch, capsys):
    store = Store(
        image(), tar({**installed("imgbuild-probe", "1.0.0", {"p.so": library(89)}), "o.so": library(75)})
    )
    monkeypatch.setattr("imgbuild.engines.docker.Docker", lambda env: store)
    assert cli(root, "comfyui:x") == 7
    out, err = capsys.readouterr()
    assert "comfyui:x for h100" in out
    assert "warning: comfyui:x: /o.so holds sm_75: nothing of it runs on 9.0" in err
    assert "p.so holds sm_89, wanted sm_90 and no other, that runs on 9.0" in err
    assert cli(root, "comfyui:y") == 3


def test_content_is_empty_by_default():
    assert judge("x", Content(), Expected(), distributions={}).rows == ()
