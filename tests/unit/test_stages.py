"""The scripts that run inside a build, and the stages of the Dockerfiles that call them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import types
from pathlib import Path

import pytest

from imgbuild import fatbin
from imgbuild.kernelbuild import KILLED
from imgbuild.kernels import KernelSource
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import Project
from imgbuild.render import PODMAN, Renderer

EPOCH = 1_786_579_200


def load(path, **replaced):
    """A stage script as a module; no bytecode is left beside it. `replaced`: texts in it."""
    text = path.read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, str(new))
    module = types.ModuleType(path.stem)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def scripts(root):
    return root / "templates" / "stages"


def call(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    module.main()


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# --- source.py: edits ----------------------------------------------------------------------------


@pytest.fixture
def source(scripts, tmp_path, monkeypatch):
    module = load(scripts / "source.py", **{"/uv/bin/uv": tmp_path / "uv"})
    monkeypatch.setattr(module, "SRC", tmp_path / "src")
    monkeypatch.setattr(module, "IN", tmp_path / "in")
    return module


def edit(**more):
    """As a recipe's JSON holds it."""
    return {"file": "csrc/a.cu", "files": 1, "old": "old", "new": "new", **more}


def by_pattern(pattern, **more):
    made = edit(pattern=pattern, **more)
    del made["old"]
    return made


def test_edit(source):
    fill(source.SRC, {"csrc/a.cu": "the old text\n", "csrc/b.cu": "old", "a.cu": "old"})
    source.apply(edit())
    assert (source.SRC / "csrc/a.cu").read_text() == "the new text\n"
    assert (source.SRC / "csrc/b.cu").read_text() == (source.SRC / "a.cu").read_text() == "old"


@pytest.mark.parametrize(("text", "count"), [("text", 0), ("old old", 2), ("Old", 0)])
@pytest.mark.parametrize("made", [edit(), by_pattern("o.d")], ids=["text", "pattern"])
def test_edit_that_does_not_apply_exactly_once(source, made, text, count):
    fill(source.SRC, {"csrc/a.cu": text})
    with pytest.raises(SystemExit) as caught:
        source.apply(made)
    assert caught.value.code == f"edit of csrc/a.cu: what it replaces occurs {count} times, and must once"
    assert (source.SRC / "csrc/a.cu").read_text() == text


@pytest.mark.parametrize(
    ("pattern", "files", "there"),
    [("csrc/a.cu", 1, 0), ("csrc/*.cu", 1, 2), ("csrc/*.cu", 3, 2), ("*.cuh", 1, 0)],
)
def test_edit_of_more_or_fewer_files(source, pattern, files, there):
    fill(source.SRC, {"csrc/b.cu": "old", "csrc/c.cu": "old"})
    with pytest.raises(SystemExit) as caught:
        source.apply(edit(file=pattern, files=files))
    says = f"edit of {pattern}: there are {there} such files, and the recipe says {files}"
    assert caught.value.code == says
    assert (source.SRC / "csrc/b.cu").read_text() == "old"


def test_edit_of_several_files(source):
    fill(source.SRC, {"csrc/b.cu": "an old b", "csrc/c.cu": "an old c", "csrc/c.cpp": "an old c"})
    source.apply(edit(file="csrc/*.cu", files=2))
    assert [(source.SRC / f"csrc/{n}").read_text() for n in ("b.cu", "c.cu", "c.cpp")] == [
        "an new b",
        "an new c",
        "an old c",
    ]
    fill(source.SRC, {"csrc/c.cu": "another"})
    fill(source.SRC, {"csrc/b.cu": "old"})
    with pytest.raises(SystemExit, match=r"edit of csrc/c\.cu: what it replaces occurs 0 times"):
        source.apply(edit(file="csrc/*.cu", files=2))


def test_texts_of_an_edit_are_taken_as_they_are(source):
    fill(source.SRC, {"csrc/a.cu": "f<T>(x[0], *p); axb"})
    source.apply(edit(old="f<T>(x[0], *p);", new=r"g(\1 \g<0> $1);"))
    assert (source.SRC / "csrc/a.cu").read_text() == r"g(\1 \g<0> $1); axb"


def test_edit_by_a_pattern(source):
    fill(source.SRC, {"csrc/a.cu": "run_hdim128<half>(a,\n  b);\nrest;"})
    source.apply(by_pattern(r"run_hdim\d+<[^;]*;", new=r"\d;"))
    assert (source.SRC / "csrc/a.cu").read_text() == "\\d;\nrest;"


BACKWARD = """\
#include "namespace_config.h"
#include "flash_bwd_launch_template.h"

namespace FLASH_NAMESPACE {

template<>
void run_mha_bwd_<cutlass::half_t, 128, true>(Flash_bwd_params &params, cudaStream_t stream) {
    run_mha_bwd_hdim128<cutlass::half_t, true>(params, stream);
}

} // namespace FLASH_NAMESPACE
"""


def test_own_edit_of_flash_attn_leaves_functions_that_raise(source, root):
    """flash_api.cpp refers to each of them: without them the library does not load."""
    files = [f"csrc/flash_attn/src/flash_bwd_hdim{n}_sm80.cu" for n in range(24)]
    fill(source.SRC, dict.fromkeys(files, BACKWARD))
    for made in load_matrix(root / "images").common.kernels["flash-attn"].trim.edits:
        source.apply(made.model_dump(mode="json", exclude_none=True))
    text = (source.SRC / files[7]).read_text()
    assert (
        "void run_mha_bwd_<cutlass::half_t, 128, true>(Flash_bwd_params &params, cudaStream_t stream) {"
        in text
    )
    assert 'TORCH_CHECK(false, "This flash attention build does not support backward.");' in text
    assert "flash_bwd_launch_template" not in text
    assert "run_mha_bwd_hdim" not in text
    assert text.count("{") == text.count("}") == 2


def test_own_edit_of_sageattention_is_one_word(source, root):
    line = "cp_async::SharedMemFillMode::{}>(smem_offset, *lane_ptr, base_idx < max_len);\n"
    before = line.format("kFillZero").replace("max_len", "other") + line.format("kNoFill")
    fill(source.SRC, {"csrc/qattn/attn_utils.cuh": before})
    (made,) = load_matrix(root / "images").common.kernels["sageattention"].edits
    source.apply(made.model_dump(mode="json", exclude_none=True))
    after = (source.SRC / "csrc/qattn/attn_utils.cuh").read_text()
    assert after == before.replace("kNoFill", "kFillZero")


def test_source_that_is_mounted(source, tmp_path, monkeypatch):
    fill(source.IN, {"setup.py": "", "csrc/a.cu": "old", ".git/HEAD": "x", "__pycache__/x.pyc": "x"})
    (source.IN / "link").symlink_to("csrc/a.cu")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"edits": [edit(), edit(old="new", new="newer")]}))
    call(monkeypatch, source, "--epoch", EPOCH, "--recipe", recipe)
    found = {p.relative_to(source.SRC).as_posix(): p for p in source.SRC.rglob("*")}
    assert set(found) == {"setup.py", "csrc", "csrc/a.cu", "link"}
    assert found["csrc/a.cu"].read_text() == "newer", "one edit after the other"
    assert found["link"].is_symlink()
    assert {p.lstat().st_mtime for p in found.values()} == {EPOCH}, "ninja compares times"
    assert (source.IN / "csrc/a.cu").read_text() == "old"


def test_edit_that_no_longer_applies_ends_the_stage(source, tmp_path, monkeypatch):
    fill(source.IN, {"csrc/a.cu": "text"})
    (tmp_path / "recipe.json").write_text(json.dumps({"edits": [edit()]}))
    with pytest.raises(SystemExit, match="occurs 0 times"):
        call(monkeypatch, source, "--epoch", EPOCH, "--recipe", tmp_path / "recipe.json")


# --- source.py: an sdist -------------------------------------------------------------------------


def sdist(path, files, top="flash_attn-2.8.3"):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fake_uv(tmp_path, url, status=0):
    """It answers with an address, and keeps what it was asked."""
    program = tmp_path / "uv"
    program.write_text(
        f'#!/bin/sh\nset -eu\necho "$@" > {tmp_path}/asked\ncat in.txt uv.toml >> {tmp_path}/asked\n'
        f'printf \'[[packages]]\\nname = "flash-attn"\\nsdist = {{ url = "{url}" }}\\n\' > pylock.toml\nexit {status}\n'
    )
    program.chmod(0o755)


def test_sdist(source, tmp_path):
    found = sdist(tmp_path / "x.tar.gz", {"setup.py": "setup()", "csrc/a.cu": "a"})
    fake_uv(tmp_path, f"file://{tmp_path}/x.tar.gz")
    source.unpack(f"flash-attn==2.8.3 --hash=sha256:{found}\n")
    assert (source.SRC / "setup.py").read_text() == "setup()"
    assert (source.SRC / "csrc/a.cu").read_text() == "a"
    asked = (tmp_path / "asked").read_text()
    for words in ("pip compile in.txt", "--no-deps", "--no-binary :all:", "\nflash-attn==2.8.3\n"):
        assert words in asked
    # Nothing of it runs before its hash is known: uv has what it would ask setup.py for.
    assert '[[dependency-metadata]]\nname = "flash-attn"\nversion = "2.8.3"\nrequires-dist = []' in asked


def test_sdist_of_another_hash_is_not_unpacked(source, tmp_path):
    found = sdist(tmp_path / "x.tar.gz", {"setup.py": "evil()"})
    fake_uv(tmp_path, f"file://{tmp_path}/x.tar.gz")
    with pytest.raises(SystemExit) as caught:
        source.unpack(f"flash-attn==2.8.3 --hash=sha256:{'0' * 64}\n")
    assert caught.value.code == (
        f"flash-attn==2.8.3: the index gave a file with sha256 {found}, pinned is {'0' * 64}"
    )
    assert not source.SRC.exists()


def test_sdist_that_the_index_has_not(source, tmp_path):
    fake_uv(tmp_path, "file:///nowhere", status=2)
    with pytest.raises(SystemExit) as caught:
        source.unpack(f"flash-attn==2.8.3 --hash=sha256:{'0' * 64}\n")
    assert caught.value.code == 2
    assert not source.SRC.exists()


def test_sdist_that_reaches_outside(source, tmp_path):
    found = sdist(tmp_path / "x.tar.gz", {"../../../evil": "x"})
    fake_uv(tmp_path, f"file://{tmp_path}/x.tar.gz")
    with pytest.raises(tarfile.OutsideDestinationError):
        source.unpack(f"flash-attn==2.8.3 --hash=sha256:{found}\n")
    assert not source.SRC.exists()


@pytest.fixture
def index():
    """An index's file server that keeps what it was told."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *_args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port, seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("index_of", "given"),
    [
        ("http://me:hunter%402@127.0.0.1:1/simple", b"me:hunter@2"),
        ("http://me:hunter2@elsewhere/simple", None),
        ("http://127.0.0.1/simple", None),
        ("", None),
    ],
)
def test_indexs_password_goes_to_the_index_alone(source, tmp_path, monkeypatch, index, index_of, given):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "SSL_CERT_FILE", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index_of)
    port, seen = index
    source.fetch(f"http://127.0.0.1:{port}/x.tar.gz", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"content"
    assert seen == [f"Basic {base64.b64encode(given).decode()}" if given else None]


# --- gate.sh -------------------------------------------------------------------------------------


class Gate:
    """The script with a folder and a compiler of the test's own."""

    def __init__(self, scripts, folder):
        text = (scripts / "gate.sh").read_text()
        paths = {"/run/gate": "gate", "/opt/cuda/bin/nvcc": "nvcc", "/proc/meminfo": "meminfo"}
        for old, new in paths.items():
            assert old in text
            text = text.replace(old, str(folder / new))
        text = re.sub(r"--wait [0-9.]+", "--wait 0.1", text)  # sooner back at the other places
        (folder / "gate").mkdir()
        (folder / "meminfo").write_text("MemTotal:   20000000 kB\nMemFree:  1000 kB\n")  # room for two
        self.script, self.nvcc, self.log = folder / "gate.sh", folder / "nvcc", folder / "log"
        self.script.write_text(text)
        self.script.chmod(0o755)
        self.log.touch()
        self.running = []

    def compiler(self, text):
        self.nvcc.write_text(f'#!/bin/sh\necho + >> "{self.log}"\n{text}\n')
        self.nvcc.chmod(0o755)

    def start(self, places):
        env = {"PATH": os.environ["PATH"], "IMGBUILD_PLACES": str(places)}
        self.running.append(subprocess.Popen([self.script], env=env, stdin=subprocess.DEVNULL))
        return self.running[-1]

    def wait_for(self, lines):
        deadline = time.monotonic() + 20
        while self.log.read_text().count("+") < lines:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def gate(scripts, tmp_path):
    made = Gate(scripts, tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("places", ["2", ""], ids=["as told", "by the memory"])
def test_never_more_compilers_than_places(gate, tmp_path, places):
    gate.compiler(f'until [ -e "{tmp_path}/go" ]; do sleep 0.01; done\necho - >> "{gate.log}"')
    jobs = [gate.start(places) for _ in range(6)]
    gate.wait_for(2)  # and all places are taken
    time.sleep(0.15)
    assert gate.log.read_text().split() == ["+", "+"]
    (tmp_path / "go").touch()
    assert [job.wait(20) for job in jobs] == [0] * 6, "nobody waits for ever"
    running, most = 0, 0
    for sign in gate.log.read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert (running, most) == (0, 2)


@pytest.mark.parametrize(("places", "killed"), [(1, 0), (2, 0), (2, 1)])
def test_place_of_a_killed_compiler_is_free(gate, places, killed):
    gate.compiler("exec sleep 60")
    for number in range(places):
        gate.start(places)
        gate.wait_for(number + 1)
    gate.start(places)
    time.sleep(0.15)
    assert gate.log.read_text().count("+") == places
    gate.running[killed].kill()
    gate.wait_for(places + 1)  # wherever it waits


@pytest.mark.parametrize("places", ["", "3"])
def test_gate_hands_over_words_and_status(gate, places):
    gate.compiler('for word; do echo "[$word]"; done\nexit 3')
    words = ["-D", 'X="a b"', "", "*", "-o=x y"]
    env = {"PATH": os.environ["PATH"], "IMGBUILD_PLACES": places}
    done = subprocess.run([gate.script, *words], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == [f"[{word}]" for word in words]
    assert [p.name for p in (gate.script.parent / "gate").iterdir()] == ["0"]


# --- measure.py ----------------------------------------------------------------------------------


@pytest.fixture
def measure(scripts):
    return load(scripts / "measure.py")


def measured(module, tmp_path, program):
    return module.measured([sys.executable, "-c", program], cwd=tmp_path, env={"A": "1"})


def test_measured(measure, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(measure, "_EVERY", 0.01)
    program = "import os, time; print(os.getcwd(), os.environ['A']); time.sleep(0.2)"
    status, record = measured(measure, tmp_path, program)
    assert status == 0
    assert set(record) == {"seconds", "peak_bytes", "peak_process_bytes"}
    assert 0.2 <= record["seconds"] < 60
    assert record["peak_bytes"] >= record["peak_process_bytes"] > 1_000_000
    json.dumps(record)
    out = capfd.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path} 1"
    assert re.fullmatch(r"imgbuild: [0-9.]+ s, at most [0-9.]+ GB, one process [0-9.]+ GB", out[-1])


@pytest.mark.parametrize("status", [1, 3, 255])
def test_status_passes_through(measure, tmp_path, capfd, status):
    assert measured(measure, tmp_path, f"print('words'); raise SystemExit({status})")[0] == status
    out = capfd.readouterr().out
    assert out.startswith("words\n")
    assert KILLED not in out


def test_both_streams_in_their_order_whatever_bytes_they_hold(measure, tmp_path, capfd):
    program = "import os; os.write(2, b'one \\xff\\n'); os.write(1, b'two'); os.write(2, b' three\\n')"
    assert measured(measure, tmp_path, program)[0] == 0
    assert capfd.readouterr().out.startswith("one \ufffd\ntwo three\n")


KILLED_LINES = {
    "g++": "g++-14: fatal error: Killed signal terminated program cc1plus",
    "older g++": "g++: internal compiler error: Killed (program cc1plus)",
    "nvcc": "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
    "ptxas": "nvcc error   : 'ptxas' died due to signal 9 (Kill signal)",
    "bash": "/bin/bash: line 1: 4711 /tmp/nvcc: Killed",
    "make": "x: terminated by signal 9",
    "dash": "Killed",
    "ninja": "FAILED: [code=137] /src/build/a.o",
    "setuptools": "error: command '/tmp/nvcc' failed with exit code -9",
    "subprocess": "subprocess.CalledProcessError: Command '['/tmp/nvcc']' died with <Signals.SIGKILL: 9>.",
}


@pytest.mark.parametrize("line", KILLED_LINES.values(), ids=KILLED_LINES)
def test_killed_compiler(measure, tmp_path, capfd, line):
    status, _ = measured(measure, tmp_path, f"print({line!r}); print('more'); raise SystemExit(1)")
    assert status == 1
    assert f"\n{KILLED}, most likely because memory ran out\n" in capfd.readouterr().out


@pytest.mark.parametrize("program", ["import os; os.kill(os.getpid(), 9)", "raise SystemExit(137)"])
def test_setup_py_that_is_killed_itself(measure, tmp_path, capfd, program):
    status, _ = measured(measure, tmp_path, program)
    assert status
    assert KILLED in capfd.readouterr().out


@pytest.mark.parametrize(
    "program",
    [
        "print('cc1plus: Killed')",  # somebody tried again, and it went well
        "print('# what happens when a compiler is Killed, and why'); raise SystemExit(1)",
        "print('kKilled'); raise SystemExit(1)",
    ],
)
def test_nobody_was_killed(measure, tmp_path, capfd, program):
    measured(measure, tmp_path, program)
    assert KILLED not in capfd.readouterr().out


# --- compile.py ----------------------------------------------------------------------------------

SETUP = """\
import json, os, pathlib, sys
if os.environ.get("FAILS"):
    sys.exit(int(os.environ["FAILS"]))
assert sys.argv[1:3] == ["bdist_wheel", "--dist-dir"]
pathlib.Path("build/temp").mkdir()
pathlib.Path("build/temp/a.o").write_text("a")
pathlib.Path("build/log").write_text("a")
out = pathlib.Path(sys.argv[3])
out.mkdir()
(out / "x-1-py3-none-any.whl").write_text(json.dumps(dict(os.environ)))
"""


@pytest.fixture
def compiling(scripts, tmp_path, monkeypatch, measure):
    monkeypatch.setitem(sys.modules, "measure", measure)
    module = load(scripts / "compile.py", **{"/tmp/stages": scripts})
    for name in ("SRC", "OUT", "WORK", "NVCC", "BUDGET"):
        monkeypatch.setattr(module, name, tmp_path / name.lower())
    monkeypatch.setattr(module, "BUILD", tmp_path / "src/build")
    (tmp_path / "src/build").mkdir(parents=True)
    (tmp_path / "src/setup.py").write_text(SETUP)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    monkeypatch.setenv("MAX_JOBS", "99")

    def run(**recipe):
        made = {"name": "probe", "flags": [], "environment": {"IMGBUILD_PROBE_ARCH": "sm_121"}, **recipe}
        (tmp_path / "recipe.json").write_text(json.dumps(made))
        words = ["--recipe", tmp_path / "recipe.json", "--epoch", EPOCH]
        call(monkeypatch, module, *words, "--triplet", "aarch64-linux-gnu", "--gcc", "14.2.0")
        (wheel,) = module.OUT.glob("*.whl")
        return json.loads(wheel.read_text())

    run.module = module
    return run


def test_what_setup_py_is_told(compiling, tmp_path):
    """The recipe, the compilers and the budget; nothing of what stands around."""
    compiling.module.BUDGET.write_text('{"probe": {"MAX_JOBS": "3"}, "flash-attn": {"NVCC_THREADS": "9"}}')
    env = compiling()
    assert {k: v for k, v in env.items() if k != "LC_CTYPE"} == {
        "HOME": "/tmp",
        "PATH": "/opt/venv/bin:/opt/cuda/bin:/usr/local/bin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "CUDA_HOME": "/opt/cuda",
        "CC": "/usr/bin/aarch64-linux-gnu-g++-14",
        "CXX": "/usr/bin/aarch64-linux-gnu-g++-14",
        "PYTORCH_NVCC": str(tmp_path / "nvcc"),
        "IMGBUILD_PROBE_ARCH": "sm_121",
        "MAX_JOBS": "3",
    }
    assert os.access(tmp_path / "nvcc", os.X_OK)


def test_flags_are_for_both_compilers(compiling):
    """Or flash-attn's checks are missing, and a call with what was left out is silently wrong."""
    env = compiling(flags=["-DONE", "-DTWO=2"])
    assert {env[name] for name in ("NVCC_APPEND_FLAGS", "CFLAGS", "CXXFLAGS")} == {"-DONE -DTWO=2"}


def test_what_a_compile_leaves(compiling):
    compiling()
    module = compiling.module
    assert {p.name for p in module.OUT.iterdir()} == {"x-1-py3-none-any.whl", "build.json"}
    assert set(json.loads((module.OUT / "build.json").read_text())) >= {"seconds", "peak_bytes"}
    assert (module.OUT / "x-1-py3-none-any.whl").stat().st_mtime == EPOCH
    assert list(module.BUILD.iterdir()) == [], "the cache has done its work"


def test_failed_compile_keeps_what_is_compiled_and_leaves_no_wheel(compiling):
    (compiling.module.BUILD / "a.o").write_text("a")
    with pytest.raises(SystemExit) as caught:
        compiling(environment={"FAILS": "7"})
    assert caught.value.code == 7
    assert not compiling.module.OUT.exists()
    assert (compiling.module.BUILD / "a.o").exists()


# --- the Dockerfiles -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renderer(root):
    return Renderer(root / "templates")


@pytest.fixture(scope="module")
def contexts(plans, renderer):
    return {name: renderer.context(plan) for name, plan in plans.items()}


def stages(dockerfile):
    """Stage → its instructions, each on one line, the FROM first."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^ *#.*\n", "", dockerfile, flags=re.MULTILINE))
    found = {}
    for block in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]:
        lines = [line for line in block.splitlines() if line]
        found[lines[0].rpartition(" AS ")[2]] = lines
    return found


def mounts(run):
    return [dict(p.partition("=")[::2] for p in m.split(",")) for m in re.findall(r"--mount=(\S+)", run)]


def runs_of(found, stage):
    return [line for line in found[stage] if line.startswith("RUN ")]


GPUS = ("ada", "gb10", "h100")
KERNELS = ("probe", "sageattention", "flash-attn")


def test_every_target_but_the_cpu_has_kernels(plans):
    assert {n: tuple(k.name for k in p.kernels) for n, p in plans.items()} == {
        **dict.fromkeys(GPUS, KERNELS),
        "cpu": (),
    }


@pytest.mark.parametrize("target", GPUS)
def test_stages_of_kernels(contexts, target):
    found = stages(contexts[target]["Dockerfile"])
    names = list(found)
    copied = re.findall(r"--from=(\S+)", "\n".join(found["runtime"]))
    for kernel in KERNELS:
        four = [f"{kind}-{kernel}" for kind in ("source", "compile", "kernel", "venv-kernel")]
        assert [n for n in names if n in four] == four
        assert found[f"source-{kernel}"][0] == f"FROM uv AS source-{kernel}", "on the building machine"
        assert found[f"compile-{kernel}"][0] == f"FROM kernel-env AS compile-{kernel}"
        assert found[f"kernel-{kernel}"] == [
            f"FROM scratch AS kernel-{kernel}",
            f"COPY --from=compile-{kernel} /out/ /",
        ]
        assert f"venv-kernel-{kernel}" in copied
    assert found["kernel-env"][0] == "FROM base AS kernel-env", "the target's own Python and torch"
    assert found["toolchain"][0] == "FROM uv AS toolchain"
    layers = [n for n in copied if n.startswith("venv-") and not n.startswith("venv-kernel-")]
    assert copied[len(layers) :][:3] == [f"venv-kernel-{k}" for k in KERNELS], "above torch, below ComfyUI"


def test_work_is_a_layer_of_its_own_below_the_kernels(contexts, plans):
    for target, files in contexts.items():
        found = stages(files["Dockerfile"])
        copied = re.findall(r"--from=(\S+)", "\n".join(found["runtime"]))
        ours = [n for n in copied if n.startswith("venv-") and not n.startswith("venv-kernel-")]
        assert ours[-1] == "venv-work"
        (run,) = runs_of(found, "venv-work")
        assert f"work.py --platform {plans[target].manylinux}" in run, target
        sources = {m.get("source") for m in mounts(run)}
        assert "edits.json" not in sources, "a change of torch's edits leaves it as it is"
        for name in ours[:-1]:
            mounted = {m.get("source") for m in mounts(runs_of(found, name)[0])}
            assert not [m for m in mounted if m and "work" in m], "and the other way round"


def test_targets_of_a_platform_and_python_share_the_work_layer(contexts):
    (h100, ada, gb10, cpu) = (
        (stages(contexts[t]["Dockerfile"])["venv-work"], contexts[t]["requirements/work.txt"])
        for t in ("h100", "ada", "gb10", "cpu")
    )
    assert h100 == ada
    assert gb10 != h100
    assert cpu != h100


def test_image_without_kernels_has_no_toolchain(contexts):
    files = contexts["cpu"]
    found = stages(files["Dockerfile"])
    assert not [n for n in found if re.search("kernel|compile|source|tool", n)]
    assert not [n for n in files if re.search(r"kernels/|compiler|tools|compile|fatbin|gate", n)]


@pytest.mark.parametrize("target", GPUS)
def test_compile_stages_see_what_shapes_the_result_and_a_budget(contexts, plans, target):
    found = stages(contexts[target]["Dockerfile"])
    for kernel in plans[target].kernels:
        compiling, proving = runs_of(found, f"compile-{kernel.name}")
        assert [(m["type"], m.get("id") or m.get("source")) for m in mounts(compiling)] == [
            ("bind", f"kernels/{kernel.name}.json"),
            ("bind", "stages/compile.py"),
            ("bind", "stages/measure.py"),
            ("bind", "stages/gate.sh"),
            ("cache", f"imgbuild-{kernel.name}-{kernel.key}"),
            ("cache", "imgbuild-gate"),
            ("secret", "budget"),
        ]
        assert [m["source"] for m in mounts(proving)] == [f"kernels/{kernel.name}.json", "stages/prove.py"]
        for run in (compiling, proving):
            assert f"--triplet {plans[target].toolchain.triplet} --gcc {plans[target].toolchain.gcc}" in run


@pytest.mark.parametrize("target", GPUS)
def test_image_with_another_date_compiles_nothing_anew(plans, renderer, contexts, target):
    """The key does not hold it, so no byte of a wheel may depend on it."""
    plan = plans[target]
    other = stages(renderer.context(dataclasses.replace(plan, epoch=plan.epoch + 86400))["Dockerfile"])
    own = stages(contexts[target]["Dockerfile"])
    assert own["venv-torch"] != other["venv-torch"]
    for name in own:
        if re.match("source-|compile-|kernel-|toolchain|venv-tools", name):
            assert own[name] == other[name]


@pytest.mark.parametrize("target", [*GPUS, "cpu"])
def test_budget_comes_in_as_a_secret_alone(contexts, target):
    found = stages(contexts[target]["Dockerfile"])
    for name, lines in found.items():
        for line in lines:
            assert not re.search("jobs|threads|places", line, re.IGNORECASE)
            if "budget" in line:
                assert name.startswith("compile-")
                assert line.count("budget") == line.count("--mount=type=secret,id=budget") == 1
            if line.startswith("ARG"):
                assert line == "ARG BUILDARCH"
    for name, text in contexts[target].items():
        if name.startswith(("kernels/", "requirements/")):
            assert not re.search("MAX_JOBS|IMGBUILD_PLACES", text)


def test_caches_of_two_kernels_are_never_one(contexts):
    """What is half compiled belongs to its key; the gate belongs to all."""
    found = [re.findall(r"type=cache,id=(\S+?),", c["Dockerfile"]) for c in contexts.values()]
    ids = [i for one in found for i in one if i != "imgbuild-gate"]
    assert len(ids) == len(set(ids)) == 9
    assert all(re.fullmatch(r"imgbuild-[a-z-]+-[0-9a-f]{16}", i) for i in ids)
    assert sum(i == "imgbuild-gate" for one in found for i in one) == 9


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("podman", [False, True])
def test_wheel_is_opened_before_it_is_installed(plans, renderer, target, podman):
    """Compiled just now or out of the wheelhouse: it is the same stage that looks."""
    plan = plans[target]
    files = renderer.context(plan, PODMAN) if podman else renderer.context(plan)
    found = stages(files["Dockerfile"])
    for kernel in plan.kernels:
        (run,) = runs_of(found, f"venv-kernel-{kernel.name}")
        check, install = re.findall(r"python3 /tmp/stages/.*?(?= && |$)", run)
        assert f"{check} && {install}" in run
        assert check.startswith("python3 /tmp/stages/fatbin.py check ")
        words = check.split()
        pairs = dict(zip(words[3:-1:2], words[4:-1:2], strict=True))
        assert pairs == {
            "--compute-capability": plan.compute_capability,
            "--machine": {"amd64": "x86_64", "arm64": "aarch64"}[plan.arch],
            "--code": "+".join(kernel.code),
        }
        assert words[-1] == "/wheels/*.whl"
        assert re.fullmatch(
            rf"python3 /tmp/stages/install\.py --platform {plan.manylinux} .* --wheels", install
        )
        assert {"type": "bind", "from": f"kernel-{kernel.name}", "target": "/wheels"} in mounts(run)
    assert files["stages/fatbin.py"] == Path(fatbin.__file__).read_text(), "the tool's own reader"


@pytest.mark.parametrize("target", [*GPUS, "cpu"])
def test_every_file_that_a_stage_mounts_is_there(contexts, target):
    files = contexts[target]
    found = stages(files["Dockerfile"])
    named = {*found, *re.search(r"expects: (.*) \(", files["Dockerfile"])[1].split(", ")}
    for lines in found.values():
        for run in lines:
            for mount in mounts(run):
                if mount["type"] == "bind" and "from" not in mount:
                    assert mount["source"] in files
                elif mount["type"] == "bind":
                    assert mount["from"] in named
    # And the other way round: nothing is carried along for nobody.
    text = files["Dockerfile"]
    unused = {n for n in files if n != "Dockerfile" and n not in text and n.rpartition("/")[2] not in text}
    assert unused == set()


def test_podman_compiles_nothing(plans, renderer):
    found = stages(renderer.context(plans["h100"], PODMAN)["Dockerfile"])
    assert not [n for n in found if re.match("source-|compile-|kernel-|toolchain|venv-tools", n)]
    assert [n for n in found if n.startswith("venv-kernel-")] == [f"venv-kernel-{k}" for k in KERNELS]


def test_fallback_is_installed_from_the_index_by_its_hash(root, renderer):
    project = Project(root=root, writable=False)
    matrix = load_matrix(project.images)
    sources = {"sageattention": KernelSource(kind="fallback", identity="sageattention==1.0.6")}
    files = renderer.context(make_plan(project, matrix, matrix.targets["gb10"], kernel_sources=sources))
    found = stages(files["Dockerfile"])
    assert not {"source-sageattention", "compile-sageattention", "kernel-sageattention"} & set(found)
    (run,) = runs_of(found, "venv-kernel-sageattention")
    assert {
        "type": "bind",
        "source": "kernels/sageattention.txt",
        "target": "/tmp/requirements.txt",
    } in mounts(run)
    assert "fatbin.py" not in run
    assert "--wheels" not in run
    assert re.fullmatch(
        r"sageattention==1\.0\.6 --hash=sha256:[0-9a-f]{64}\n", files["kernels/sageattention.txt"]
    )
    assert "--from=venv-kernel-sageattention" in "\n".join(found["runtime"])
