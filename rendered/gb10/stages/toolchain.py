"""Runs in a host stage: the compilers for a target's architecture, at their places, under /o.

All of them are programs of the building machine. In a container of another
architecture they run at full speed all the same, once their loader and their
libraries lie where they look for them: only the caller, setup.py, is emulated.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

OUT = Path("/o")
CUDA = Path("/opt/cuda")
SITE = "lib/python3*/site-packages/nvidia/cu[0-9]*"
TARGET = Path("/target-venv")  # the target's own torch libraries, with their headers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--triplet", required=True)
    parser.add_argument("--gcc", required=True)
    args = parser.parse_args()
    debian_compiler(args.triplet, args.gcc)
    cuda_toolkit(args.triplet, args.gcc)
    shutil.copytree(CUDA, OUT / "opt/cuda", symlinks=True)
    if platform.machine() != args.triplet.partition("-")[0]:
        host_libraries()


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} … ended with {done.returncode}")
    return done.stdout


def installed() -> set[str]:
    return set(run("dpkg-query", "--show", "--showformat", "${Package}:${Architecture}\n").split())


def debian_compiler(triplet: str, gcc: str) -> None:
    """Debian's compiler for the architecture, and every file that came with it."""
    before = installed()
    apt = ["apt-get", "--option", "APT::Sandbox::User=root"]
    if Path("/run/secrets/ca").exists():
        apt += ["--option", "Acquire::https::CAInfo=/run/secrets/ca"]
    if Path("/run/secrets/apt").exists():  # the building machine's own mirror
        apt += [
            "--option",
            "Dir::Etc::SourceList=/run/secrets/apt",
            "--option",
            "Dir::Etc::SourceParts=/dev/null",
        ]
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run(*apt, "update")
    major = gcc.partition(".")[0]
    run(*apt, "install", "--yes", "--no-install-recommends", f"g++-{major}-{triplet.replace('_', '-')}")
    found = run(f"{triplet}-g++-{major}", "-dumpfullversion").strip()
    if found != gcc:
        sys.exit(f"Debian has g++ {found} for {triplet}; images/comfyui.yaml pins gcc {gcc}")
    for package in sorted(installed() - before):
        for line in run("dpkg-query", "--listfiles", package).splitlines():
            path = Path(line)
            if not path.is_relative_to("/usr/share") and (path.is_file() or path.is_symlink()):
                copy(path)


def copy(path: Path) -> None:
    """To the same place under /o; /lib is a link to /usr/lib there as well as here."""
    place = OUT / (path.parent.resolve() / path.name).relative_to("/")
    if not (place.exists() or place.is_symlink()):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place, follow_symlinks=False)


def cuda_toolkit(triplet: str, gcc: str) -> None:
    """nvcc from wheels, which is the building machine's, over the target's headers and libraries."""
    command = [
        "/uv/bin/uv",
        "pip",
        "install",
        "--target",
        "/opt/wheels",
        "--requirement",
        "/tmp/compiler.txt",
    ]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-config", "--no-progress"]
    command += ["--no-cache", "--link-mode", "copy"]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    (wheels,) = Path("/opt/wheels/nvidia").glob("cu[0-9]*")
    shutil.move(wheels, CUDA)
    (target,) = TARGET.glob(SITE)
    shutil.copytree(target / "include", CUDA / "include", dirs_exist_ok=True)
    # nvcc.profile looks for lib64; lib holds what nvcc itself loads.
    lib = CUDA / "lib64"
    lib.mkdir()
    for library in target.glob("lib/libcudart.so.*"):
        shutil.copy2(library, lib)
        (lib / "libcudart.so").symlink_to(library.name)
    for name in ("libcudart_static.a", "libcudadevrt.a"):
        shutil.copy2(target / "lib" / name, lib)
    # The driver's library comes with the driver, at run time: here only its name is needed.
    compiler = f"{triplet}-g++-{gcc.partition('.')[0]}"
    run(compiler, "-shared", "-o", lib / "libcuda.so", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null")


def host_libraries() -> None:
    """The loader and the libraries of every program above."""
    found: set[str] = set()
    for path in OUT.rglob("*"):
        if path.is_symlink() or not path.is_file() or not os.access(path, os.X_OK):
            continue
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        done = subprocess.run(
            ["ldd", str(path)], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        found.update(re.findall(r"(?:=> )?(/\S+) \(0x", done.stdout))
    for name in sorted(found):
        library = Path(name)
        if not library.is_relative_to(OUT) and not library.is_relative_to(CUDA):
            real = library.resolve()
            copy(real)
            place = OUT / (library.parent.resolve() / library.name).relative_to("/")
            if library.name == real.name or place.exists() or place.is_symlink():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(OUT / real.relative_to("/"), place.parent))
    # The loader's own name is an absolute path in every program: /lib64/ld-linux-x86-64.so.2, say.
    for name in sorted(found):
        if "/ld-linux" in name:
            place = OUT / Path(name).relative_to("/")
            if not (place.exists() or place.is_symlink()) and not Path(name).parent.resolve().is_relative_to(
                "/usr/lib"
            ):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(name).resolve(), place)


if __name__ == "__main__":
    main()
