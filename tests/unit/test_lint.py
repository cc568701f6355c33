from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgbuild.cli import main
from imgbuild.errors import ConfigError
from imgbuild.lint import lint, refuse_findings
from imgbuild.lint.dockerfile import instructions
from imgbuild.lint.finding import REMEDIES
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plans
from imgbuild.project import Project
from imgbuild.projections import shared_files, target_files
from imgbuild.render import PODMAN, Renderer

COMMIT = "0123456789abcdef" * 2 + "01234567"
SHA = "ab" * 32
BASE = f"FROM debian:trixie@sha256:{SHA} AS base\n"

MOVING, SECRET, SWALLOWED, UNHASHED, UNVERIFIED = sorted(REMEDIES)


def rules(path, text):
    return [f.rule for f in lint({path: text})]


def in_shell(text):
    return rules("a.sh", text)


def in_run(text):
    """In a Dockerfile, which is where most of it would be."""
    return rules("Dockerfile", f"{BASE}RUN {text}\n")


def bake(**target):
    text = json.dumps({"target": {"cpu": {"context": "rendered/cpu", **target}}}, indent=2)
    return {"rendered/docker-bake.json": text}


# --- what the project renders --------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans(root):
    project = Project(root=root, writable=False)
    matrix = load_matrix(project.images)
    return make_plans(project, matrix, tuple(matrix.targets.values()))


def test_everything_that_is_rendered_is_clean(root, matrix, plans):
    renderer = Renderer(root / "templates")
    files = target_files(plans, renderer)
    files |= shared_files(Project(root=root, writable=False), matrix, plans, renderer)
    assert lint(files) == ()
    assert any(i.name == "RUN" for i in instructions(files["rendered/cpu/Dockerfile"]))


def test_what_podman_gets_is_clean(root, plans):
    renderer = Renderer(root / "templates")
    for plan in plans:
        assert lint(renderer.context(plan, PODMAN)) == ()


@pytest.mark.parametrize(
    ("name", "line", "rule"),
    [
        ("Dockerfile.j2", "RUN pip install torch", UNHASHED),
        ("base-setup.sh.j2", "ldconfig || true", SWALLOWED),
        ("stages/settle.py", 'subprocess.run(["git", "clone", "https://example.org/x.git"])', MOVING),
    ],
)
def test_a_template_that_breaks_a_rule_is_refused(project, capsys, name, line, rule):
    path = project.templates / name
    path.write_text(f"{path.read_text()}\n{line}\n")
    out = project.root / "out"
    for options in ([], ["--check"], ["--diff"], ["cpu"], ["-o", str(out)]):
        assert main(["--project", str(project.root), "render", *options]) == 2
        err = capsys.readouterr().err
        assert rule in err
        assert f"rendered/cpu/{name.removesuffix('.j2')}:" in err
        assert "hint: mend templates/" in err
        assert not project.rendered.exists()
        assert not out.exists()


def test_every_finding_is_told_with_its_place_and_its_remedy():
    files = {
        "b/Dockerfile": f"{BASE}\nRUN a \\\n    # why\n    b || true\nENV HF_TOKEN=x\n",
        "a.sh": "set -eu\n\ncurl -O https://example.org/x\n",
    }
    found = lint(files)
    assert [(f.path, f.line, f.rule) for f in found] == [
        ("a.sh", 3, UNHASHED),
        ("b/Dockerfile", 5, SWALLOWED),
        ("b/Dockerfile", 6, SECRET),
    ]
    with pytest.raises(ConfigError) as caught:
        refuse_findings(files)
    assert all(str(f) in caught.value.message and f.remedy in str(f) for f in found)
    refuse_findings({"a.sh": "set -eu\n"})


# --- failures that are swallowed -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a || true",
        "a || :",
        "a ||true",
        "a || /bin/true",
        "a || \\\n  true",
        "a ||\n  true",
        "a || { true; }",
        "(a || :) && b",
        "a || exit 0",
        "f() { a || return 0; }",
        "if a; then b || true; fi",
        'x="$(a || true)"',
        "x=`a || true`",
        "sh -c 'a || true'",
        "bash -euxc 'a || true'",
        'eval "a || :"',
        "a; true",
        "a\ntrue",
        "a & :",
        "set +e",
        "set +eu",
        "set +o errexit",
        "set +o pipefail",
        "cat > /x.sh <<EOF\nset +e\nEOF",
        "bash <<-'END'\n\tset +e\n\tEND",
    ],
)
def test_swallowed(text):
    assert in_shell(text) == [SWALLOWED]


@pytest.mark.parametrize("text", ["a || true", "a; :", "set +e; a", '["sh", "-c", "a || true"]'])
def test_swallowed_in_a_dockerfile(text):
    assert in_run(text) == [SWALLOWED]


@pytest.mark.parametrize(
    "text",
    [
        "set -eu",
        "set -- +e2",
        "a || b",
        "a || exit 2",
        "a || { echo sorry >&2; exit 2; }",
        "true && a",
        "while :; do a; done",
        "while true\ndo\n  :\ndone",
        "until a; do :; done",
        "if a; then :; else true; fi",
        "case $1 in a) :;; *) true;; esac",
        "echo 'a || true'",
        'echo "a || true"',
        "echo a \\|\\| true",
        "# a || true",
        "a # || true",
        "echo a#b || c",
        ": ${X:=1}",
        "true",
        "a > /dev/null 2>&1 || b",
    ],
)
def test_not_swallowed(text):
    assert in_shell(text) == []


# --- what moves ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "FROM debian",
        "FROM debian:trixie",
        "FROM debian:latest",
        "FROM --platform=$BUILDPLATFORM debian:trixie AS host",
        "FROM debian@sha256:0123",
        "ARG BASE=debian:trixie\nFROM ${BASE}",
        "ARG TAG=trixie\nFROM debian:$TAG",
        "FROM debian:${TAG:-trixie}",
        "FROM scratch AS a\nFROM b",
        "FROM scratch AS a\nCOPY --from=busybox:1 /bin /bin",
        "FROM scratch AS a\nCOPY --link --from=library/busybox /bin /bin",
        "FROM scratch AS a\nRUN --mount=type=bind,from=busybox:latest,target=/b ls",
        "FROM scratch AS a\nADD https://github.com/comfyanonymous/ComfyUI.git#master /x",
        "FROM scratch AS a\nADD --keep-git-dir=true git@github.com:a/b.git#v1.0 /x",
        "FROM scratch AS a\nONBUILD ADD https://example.org/a.git /x",
        "# syntax=docker/dockerfile:1\nFROM scratch",
        "# escape=`\nFROM `\n  debian:trixie",
    ],
)
def test_moving_in_a_dockerfile(text):
    assert rules("Dockerfile", f"{text}\n") == [MOVING]


@pytest.mark.parametrize(
    "text",
    [
        f"FROM debian:trixie@sha256:{SHA}",
        f"FROM debian@sha256:{SHA} AS a\nFROM a AS b\nFROM A",
        "FROM scratch",
        "ARG BASE\nFROM ${BASE} AS base\nFROM base AS host",
        f"ARG BASE=debian@sha256:{SHA}\nFROM $BASE",
        "FROM scratch AS a\nFROM scratch\nCOPY --from=a / /\nCOPY --from=0 / /\nCOPY --from=nodes-src / /",
        f"FROM scratch\nCOPY --from=busybox:1@sha256:{SHA} /bin /bin",
        f"FROM scratch\nADD https://github.com/a/b.git#{COMMIT} /x",
        f"FROM scratch\nADD https://github.com/a/b.git#{COMMIT}:folder /x",
        f"FROM scratch\nADD --checksum={COMMIT} https://github.com/a/b.git#v1 /x",
        f"# syntax=docker/dockerfile:1@sha256:{SHA}\nFROM scratch",
        "# Named contexts: a, b\n# syntax=nothing any more\nFROM scratch",
        "FROM scratch\nCOPY <<EOF /etc/motd\nFROM debian:latest\nEOF",
        'FROM scratch\nHEALTHCHECK CMD ["curl", "http://127.0.0.1:8188"]\nCMD ["sh", "-c", "a || true"]',
    ],
)
def test_not_moving_in_a_dockerfile(text):
    assert rules("Dockerfile", f"{text}\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "git clone https://github.com/a/b.git",
        "git clone --depth 1 --branch v1.0 https://github.com/a/b.git /b",
        "git -C /b clone https://github.com/a/b.git && git -C /b checkout main",
        "cd /b && git fetch origin main",
        "git pull --ff-only",
        "git submodule update --remote",
        "git clone https://github.com/a/b.git && cd b && git checkout 0123456",
        "x=$(git clone https://github.com/a/b.git)",
    ],
)
def test_moving_git(text):
    assert in_run(text) == [MOVING]


@pytest.mark.parametrize(
    "text",
    [
        f"git clone https://github.com/a/b.git && git -C b checkout --detach {COMMIT}",
        f"git clone --revision={COMMIT} https://github.com/a/b.git",
        f"git fetch --depth 1 origin {COMMIT}",
        "git submodule update --init",
        "git config --global safe.directory /src && git apply /x.patch",
        "echo git clone",
    ],
)
def test_not_moving_git(text):
    assert in_run(text) == []


@pytest.mark.parametrize("branch", ["", "@main", f"@{COMMIT[:12]}"])
@pytest.mark.parametrize("program", ["pip", "uv pip", "/uv/bin/uv pip", "python3.13 -m pip"])
def test_moving_requirement(program, branch):
    text = f"{program} install --no-deps --no-build-isolation git+https://github.com/a/b.git{branch}"
    assert in_run(text) == [MOVING]
    assert in_run(text.replace("git+", "'b @ git+").rstrip() + "'") == [MOVING]


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("https://github.com/comfyanonymous/ComfyUI.git", MOVING),
        ("https://github.com/comfyanonymous/ComfyUI.git#master", MOVING),
        (f"https://github.com/comfyanonymous/ComfyUI.git#{COMMIT[:10]}", MOVING),
        ("https://github.com/comfyanonymous/ComfyUI", MOVING),
        ("docker-image://debian:trixie", MOVING),
        ("docker-image://debian:latest", MOVING),
        ("https://example.org/x.tar.gz", UNHASHED),
    ],
)
def test_context_that_moves(source, rule):
    (found,) = lint(bake(contexts={"src": source}))
    assert (found.rule, found.line) == (rule, 6)
    assert [f.rule for f in lint(bake(context=source))] == [rule]


@pytest.mark.parametrize(
    "source",
    [
        f"https://github.com/comfyanonymous/ComfyUI.git#{COMMIT}",
        f"https://github.com/comfyanonymous/ComfyUI.git#{COMMIT}:comfy",
        f"https://github.com/comfyanonymous/ComfyUI.git?ref=master&commit={COMMIT}",
        f"docker-image://debian:trixie@sha256:{SHA}",
        "target:base",
        "oci-layout:///cache/base",
        "../ComfyUI",
        "nodes",
    ],
)
def test_context_that_stays(source):
    assert lint(bake(contexts={"src": source})) == ()


def test_a_bake_file_says_which_contexts_there_are():
    dockerfile = {"rendered/cpu/Dockerfile": f"{BASE}COPY --from=comfyui-src / /x\n"}
    assert lint(dockerfile | bake(contexts={"comfyui-src": "."})) == ()
    (found,) = lint(dockerfile | bake(contexts={"comfyui": "."}))
    assert (found.path, found.line, found.rule) == ("rendered/cpu/Dockerfile", 2, MOVING)
    assert lint({"rendered/cpu/Dockerfile": "FROM base\n"} | bake(contexts={"base": "."})) == ()
    inline = {"dockerfile-inline": "FROM debian:trixie\nRUN a || true\n"}
    assert [f.rule for f in lint(bake(**inline))] == [MOVING, SWALLOWED]


@pytest.mark.parametrize("text", ["{", "[]", '{"target": [1]}'])
def test_a_bake_file_that_is_none(text):
    with pytest.raises(ConfigError, match=r"^x/docker-bake.json: not a bake file"):
        lint({"x/docker-bake.json": text})


# --- downloads that no hash pins -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "curl -fsSLO https://example.org/x.tgz",
        'curl "$URL" | tar xz',
        "wget -q https://example.org/x -O /x",
        "curl -fsSL https://example.org/install.sh | sh",
        "curl https://example.org/x | sh && echo 0 | sha256sum --check",
        "if a; then /usr/bin/wget https://example.org/x; fi",
        "PIP_NO_INPUT=1 pip install torch",
        "pip install -r requirements.txt",
        "/uv/bin/pip3.13 install --requirement /tmp/uv.txt",
        "$VENV/bin/pip install --upgrade pip",
        "python3 -I -m pip install --target /x torch==2.13.0",
        "sudo -E env A=b pip install x",
        "xargs -n 1 pip install < list",
        "pip --quiet --cache-dir /c download torch",
        "pip wheel .",
        "pip install .",
        "pip install --no-deps .",
        "pip install --no-build-isolation .",
        "pip install --no-deps --no-build-isolation . torch",
        "pip install --no-deps https://example.org/x-1-py3-none-any.whl",
        "pip install --no-index --find-links https://example.org/wheels torch",
        "uv pip install torch",
        "uv --offline-cache x pip install torch",
        "uv pip sync requirements.txt",
        "uv sync",
        "uv run python x.py",
        "uv tool install ruff",
        "uvx ruff",
        "pipx install ruff",
        "python -m build",
        "npm install",
        "cargo install ripgrep",
        "conda install -y pytorch",
        '["pip", "install", "torch"]',
        "<<EOF\npip install torch\nEOF",
        "--network=none <<EOF bash\npip install torch\nEOF",
    ],
)
def test_unhashed(text):
    assert in_run(text) == [UNHASHED]


@pytest.mark.parametrize(
    "text",
    [
        f"curl -fsSLo /x https://example.org/x && echo '{SHA}  /x' | sha256sum --check",
        f"wget -O x https://example.org/x; echo {SHA} x > sums; sha512sum -c sums",
        "curl --version",
        "pip install --require-hashes -r requirements.txt",
        "pip install --quiet --no-cache-dir --only-binary :all: --require-hashes --requirement /tmp/uv.txt",
        "pip install --no-index --find-links /wheels torch",
        "pip install --no-index /wheels/torch-1-py3-none-any.whl",
        "pip install --no-deps /wheels/torch-1-py3-none-any.whl",
        "pip install --no-deps --target /x ./torch-1-py3-none-any.whl",
        "pip wheel --no-deps --no-build-isolation --wheel-dir /out .",
        "pip install --no-deps --no-build-isolation -e .",
        f"pip install --no-deps --no-build-isolation git+https://github.com/a/b.git@{COMMIT}",
        f"pip install --no-deps --no-build-isolation 'b @ git+https://github.com/a/b.git@{COMMIT}#egg=b'",
        "uv pip install --require-hashes --no-deps --requirement /tmp/r.txt",
        "uv pip sync --require-hashes r.txt",
        "uv pip compile r.in",
        "uv sync --locked",
        "uv run --frozen x.py",
        "pip --version && pip check && pip list",
        "pip uninstall -y torch",
        "python -m venv /x",
        "python -m build --no-isolation",
        "npm ci",
        "apt-get install --yes curl wget git",
        "python3 setup.py bdist_wheel",
        "echo pip install torch > README",
    ],
)
def test_hashed(text):
    assert in_run(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ADD https://example.org/x.tgz /x", [UNHASHED]),
        ("ADD --link --chmod=0644 https://example.org/x.tgz /x", [UNHASHED]),
        ("ADD --checksum=sha256:abc https://example.org/x.tgz /x", [UNHASHED]),
        ('ADD ["https://example.org/x.tgz", "/x"]', [UNHASHED]),
        (f"ADD --checksum=sha256:{SHA} https://example.org/x.tgz /x", []),
        (f"ADD --chmod=0644 \\\n  --checksum=sha256:{SHA} \\\n  https://example.org/x.tgz /x", []),
        ("ADD local.tgz /x", []),
    ],
)
def test_added(text, found):
    assert rules("Dockerfile", f"{BASE}{text}\n") == found


# --- checks that are turned off --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "apt-get install --allow-unauthenticated x",
        "apt-get -o APT::Get::AllowUnauthenticated=true install x",
        "apt-get update --allow-insecure-repositories",
        "apt-key adv --recv-keys 0123",
        "gpg --export x | apt-key add -",
        "echo 'deb [trusted=yes] https://example.org x main' > /etc/apt/sources.list.d/x.list",
        "cat > /etc/apt/sources.list.d/x.sources <<EOF\nTypes: deb\nTrusted: yes\nEOF",
        "pip install --require-hashes --trusted-host example.org -r x",
        "git -c http.sslVerify=false apply x",
        "GIT_SSL_NO_VERIFY=1 git status",
    ],
)
def test_unverified(text):
    assert in_shell(text) == [UNVERIFIED]


def test_unverified_download():
    check = f"echo {SHA} x | sha256sum -c"
    assert in_shell(f"curl -fsSkO https://example.org/x && {check}") == [UNVERIFIED]
    assert in_shell(f"curl --insecure -O https://example.org/x && {check}") == [UNVERIFIED]
    assert in_shell(f"wget --no-check-certificate https://example.org/x && {check}") == [UNVERIFIED]


@pytest.mark.parametrize(
    "text",
    [
        "apt-get update && apt-get install --yes --no-install-recommends gcc",
        "echo 'Acquire::https::CAInfo \"/run/secrets/ca\";' > /etc/apt/apt.conf.d/99ca",
        "cp apt-keyring.gpg /usr/share/keyrings/",
        "echo 'deb [signed-by=/usr/share/keyrings/x.gpg] https://example.org x main' > /x",
    ],
)
def test_verified(text):
    assert in_shell(text) == []


# --- secrets that stay -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "GITHUB_TOKENS",
        "PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "PIP_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "http_proxy",
        "HTTPS_PROXY",
        "OPENAI_API_KEY",
    ],
)
@pytest.mark.parametrize(
    "line", ["ARG {}", "ARG {}=x", "ARG A=1 {}=x", "ENV {}=x", "ENV {} x y", 'ENV A="b c" \\\n    {}=x']
)
def test_secret(name, line):
    assert rules("Dockerfile", f"{BASE}{line.format(name)}\n") == [SECRET]
    assert rules("Dockerfile", f"{line.format(name)}\n{BASE}") == [SECRET]


def test_secret_as_an_argument_of_a_build():
    (found,) = lint(bake(args={"SOURCE_DATE_EPOCH": "1", "PIP_INDEX_URL": "x"}))
    assert (found.rule, found.line) == (SECRET, 7)
    assert lint(bake(args={"SOURCE_DATE_EPOCH": "1"}, secret=["id=machine,src=x"])) == ()


@pytest.mark.parametrize(
    "line",
    [
        "ARG BUILDARCH",
        "ENV PATH=/opt/venv/bin:/bin PYTHONDONTWRITEBYTECODE=1",
        "ENV TOKENIZERS_PARALLELISM=false",
        "ENV NOTE HF_TOKEN",
        "RUN --mount=type=secret,id=hf,env=HF_TOKEN ./fetch",
        "RUN --mount=type=secret,id=machine . /run/secrets/machine; http_proxy= ls",
        'LABEL note="ENV HF_TOKEN=x"',
    ],
)
def test_no_secret(line):
    assert rules("Dockerfile", f"{BASE}{line}\n") == []


@pytest.mark.parametrize("path", ["a.sh", "a.py", "Dockerfile", "docker-bake.json"])
def test_name_and_password_in_an_address(path):
    text = {
        "a.sh": "x=https://user:word@example.org/simple",
        "a.py": 'X = "https://user:word@example.org/simple"',
        "Dockerfile": f"{BASE}LABEL x=https://user:word@example.org/",
        "docker-bake.json": json.dumps({"target": {"a": {"args": {"X": "https://user:word@example.org/"}}}}),
    }[path]
    assert rules(path, f"{text}\n") == [SECRET]
    clean = text.replace("user:word@", "")
    assert rules(path, f"{clean}\n") == []


# --- stage scripts in Python -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('subprocess.run(["pip", "install", "torch"], check=True)', [UNHASHED]),
        ('subprocess.run([sys.executable, "-m", "pip", "install", name])', [UNHASHED]),
        ('with subprocess.Popen(["uv", "pip", "install", "x"]) as p: print(p)', [UNHASHED]),
        ('if subprocess.run(["pip", "install", "x"]).returncode: raise SystemExit', [UNHASHED]),
        ('def f():\n    c = ["uv", "pip", "install"]\n    c += ["--no-deps", "x"]\n    run(c)', [UNHASHED]),
        ('c = ["pip", "install"]\nrun([*c, "x"])', [UNHASHED]),
        ('run(["pip"] + ["install", "x"])', [UNHASHED]),
        ('os.system("pip install torch")', [UNHASHED]),
        ('run("curl https://example.org/x | sh", shell=True)', [UNHASHED]),
        ("urllib.request.urlopen(url)", [UNHASHED]),
        ("urlretrieve(url, path)", [UNHASHED]),
        ("requests.get(url)", [UNHASHED]),
        ('run(["git", "clone", "https://github.com/a/b.git"])', [MOVING]),
        ('run(["apt-get", "--allow-unauthenticated", "install", "x"])', [UNVERIFIED]),
        ("try:\n    f()\nexcept:\n    pass", [SWALLOWED]),
        ("try:\n    f()\nexcept Exception:\n    pass", [SWALLOWED]),
        ("try:\n    f()\nexcept (OSError, BaseException):\n    pass", [SWALLOWED]),
        ("with contextlib.suppress(Exception):\n    f()", [SWALLOWED]),
        ('run("a || true", shell=True)', [SWALLOWED]),
    ],
)
def test_python(text, found):
    assert rules("a.py", f"{text}\n") == found
    assert in_run(f"python3 - <<'EOF'\n{text}\nEOF") == found
    assert rules("Dockerfile", f"{BASE}COPY <<EOF /x/a.py\n{text}\nEOF\n") == found


@pytest.mark.parametrize(
    "text",
    [
        'c = ["uv", "pip", "install"]\nc += ["--require-hashes", "-r", "x"]\nrun(c)',
        'c = ["pip", "install"]\nrun([*c, "--require-hashes", "-r", "x"])',
        'def f():\n    c = ["pip", "list"]\n    run(c)\ndef g():\n    c = ["--x"]\n    run(c)',
        'run(["apt-get", "install", "--yes", package])',
        'run([sys.executable, "setup.py", "bdist_wheel"])',
        "data = urlopen(url).read()\nassert hashlib.sha256(data).hexdigest() == wanted",
        "try:\n    f()\nexcept OSError:\n    pass",
        "try:\n    f()\nexcept (OSError, ValueError):\n    pass",
        "try:\n    f()\nexcept Exception as e:\n    sys.exit(str(e))",
        "with contextlib.suppress(FileNotFoundError):\n    f()",
        'TEXT = "a || true; pip install torch"',
        '"""pip install torch || true"""',
    ],
)
def test_python_that_is_clean(text):
    assert rules("a.py", f"{text}\n") == []


def test_python_that_is_none():
    with pytest.raises(ConfigError, match=r"^x/a.py:2: not Python"):
        lint({"x/a.py": "a = 1\nif\n"})


def test_lines_of_python_in_a_heredoc():
    text = f"{BASE}RUN python3 - <<EOF\nimport os\n\nos.system('a || true')\nEOF\nRUN b || true\n"
    assert [f.line for f in lint({"Dockerfile": text})] == [5, 7]


# --- the grammar -----------------------------------------------------------------------------------


def test_instructions_as_buildkit_reads_them():
    text = """# escape=\\
FROM scratch AS a
RUN --mount=type=bind,source=a,target=/b \\
    # a comment in the middle, and an empty line

    --network=none \\
    one "two # three" \\
    && four

run <<EOT bash -x
FROM evil
# kept
EOT
COPY --chmod=0755 <<"A" <<-B /x/
ENV X=1
A
\ttwo
\tB
ENV A="x y" \\
    B=c
"""
    found = list(instructions(text))
    assert [(i.name, i.line) for i in found] == [
        ("FROM", 2),
        ("RUN", 3),
        ("RUN", 10),
        ("COPY", 14),
        ("ENV", 19),
    ]
    run, heredoc, copy, env = found[1:]
    assert run.flags == ("--mount=type=bind,source=a,target=/b", "--network=none")
    assert run.text_line == 6
    assert run.words() == ["one", "two # three", "four"]
    assert [(h.command.split(), h.text, h.line) for h in heredoc.heredocs] == [
        (["bash", "-x"], "FROM evil\n# kept", 11)
    ]
    assert copy.flag("chmod") == ["0755"]
    assert [(h.text, h.line) for h in copy.heredocs] == [("ENV X=1", 15), ("\ttwo", 17)]
    assert copy.words() == ["/x/"]
    assert env.words() == ["A=x y", "B=c"]


def test_which_files_are_looked_at():
    for path in ("Dockerfile", "a/cpu.Dockerfile", "Dockerfile.cpu", "Containerfile"):
        assert rules(path, "FROM debian\n") == [MOVING]
    assert rules("bin/start", "#!/bin/sh\na || true\n") == [SWALLOWED]
    assert rules("bin/start", "#!/usr/bin/env python3\nos.system('a || true')\n") == [SWALLOWED]
    for path in ("README.md", "profile.json", "requirements/a.txt", "LICENSE"):
        assert rules(path, "a || true\npip install torch\n") == []


_PIECES = ["<<EOF", "EOF", "RUN ", "FROM ", "COPY ", "--mount=", "$(", "${", "||", "pip ", "a"]


@given(st.lists(st.sampled_from([*_PIECES, *"'\"`$(){}[]<>|&;#\\\n\t ="]), max_size=60).map("".join))
def test_nothing_makes_it_stumble(text):
    lint({"Dockerfile": text, "a.sh": text})
    assert all(1 <= f.line <= text.count("\n") + 1 for f in lint({"a.sh": text}))
