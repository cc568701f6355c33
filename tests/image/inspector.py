"""Looks at the file system of an image from inside and prints what it finds as JSON. Standard library only.

Runs as root in a container of the image, with nothing mounted and no network:

    docker run --rm -i --user 0 --read-only --network none --entrypoint python IMAGE - tree < inspector.py

`tree` is everything but the hashes; `hashes` reads every byte of the packages and of our code, which takes longer.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import stat
import sys

# The kernel's, the engine's, and what is a volume.
NOT_THE_IMAGE = {"/proc", "/sys", "/dev", "/tmp", "/data", "/cache"}
THE_ENGINES = {
    "/.dockerenv",
    "/run/.containerenv",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/mtab",
}
# The CUDA compiler and its parts.
COMPILERS = {"nvcc", "nvcc.profile", "cicc", "cudafe++", "nvlink", "fatbinary", "ptxas", "bin2c"}
KEY_FILES = (
    *("/usr/bin/tini", "/usr/local/bin/comfyrun", "/opt/comfyrun/comfyrun/__main__.py"),
    *("/opt/work/bin/python", "/opt/comfyrun/bin/comfywork", "/opt/comfyrun/comfywork/__main__.py"),
    *("/etc/comfyrun/profile.json", "/etc/comfyrun/flags.json", "/etc/comfyrun/constraints.txt"),
    *("/etc/comfyrun/extra_model_paths.yaml", "/opt/comfyui/main.py", "/opt/venv/bin/python", "/usr/bin/gcc"),
    *(
        "/usr/share/doc/imgbuild/LICENSE",
        "/usr/share/doc/imgbuild/NOTICE",
        "/usr/share/imgbuild/debian-packages.txt",
    ),
)


def walk():
    found = {
        "files": 0,
        "bytes": 0,
        "writable": [],
        "owned": [],
        "setid": [],
        "capable": [],
        "compilers": [],
        "leftovers": [],
    }
    stack = ["/"]
    while stack:
        folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = entry.path
                if path in NOT_THE_IMAGE or path in THE_ENGINES:
                    continue
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    stack.append(path)
                look(path, entry.name, info, found)
    return found


def look(path, name, info, found):
    is_link = stat.S_ISLNK(info.st_mode)
    is_file = stat.S_ISREG(info.st_mode)
    found["files"] += 1
    found["bytes"] += info.st_size if is_file else 0
    mode = stat.S_IMODE(info.st_mode)
    if (not is_link and mode & 0o022) or (info.st_uid and mode & 0o200):
        found["writable"].append([path, oct(mode), info.st_uid, info.st_gid])
    if info.st_uid or (info.st_gid and path.startswith(("/opt", "/etc/comfyrun", "/usr/local"))):
        found["owned"].append([path, info.st_uid, info.st_gid])
    if is_file and mode & 0o6000:
        found["setid"].append([path, oct(mode)])
    if is_file:
        try:
            os.getxattr(path, "security.capability", follow_symlinks=False)
            found["capable"].append(path)
        except OSError:
            pass
    if name in COMPILERS and not stat.S_ISDIR(info.st_mode):
        found["compilers"].append(path)
    if is_leftover(path, name):
        found["leftovers"].append(path)


def is_leftover(path, name):
    """What a build needs, and an image does not."""
    if name in (".git", ".hg", ".netrc", ".pypirc", ".git-credentials", "pip.conf", "uv.toml"):
        return True
    if path.startswith(
        ("/root/", "/run/secrets", "/home/", "/o/", "/uv/", "/var/cache/apt/archives/", "/var/lib/apt/lists/")
    ):
        return name not in (".bashrc", ".profile", "lock", "partial", "auxfiles")
    return name.endswith((".whl", ".cu.o")) or (name == ".cache" and path.count("/") == 2)


def packages():
    for dist in importlib.metadata.distributions():
        yield re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(), dist


def versions():
    """Of every package, each version of it that is installed."""
    found = {}
    for name, dist in packages():
        found.setdefault(name, []).append(dist.version)
    return found


def hashes():
    """Of every package: which of its files are not what its RECORD says."""
    found = {}
    for name, dist in packages():
        entry = found[name] = {"version": dist.version, "files": 0, "wrong": [], "missing": []}
        for file in dist.files or ():
            if "__pycache__" not in file.parts:
                entry["files"] += 1
                check(file, entry)
    return found


def bytecode():
    """Compiled files under /opt that are not of the source beside them: Python runs them all the same.

    An image's bytecode is of the kind that is not held against its source when it is loaded.
    """
    found = {"files": 0, "stale": []}
    for folder, _, names in os.walk("/opt"):
        for name in names if folder.endswith("/__pycache__") else ():
            path = f"{folder}/{name}"
            with open(path, "rb") as file:
                head = file.read(16)
            source = f"{os.path.dirname(folder)}/{name.partition('.')[0]}.py"
            found["files"] += 1
            if not int.from_bytes(head[4:8], "little") & 1:
                found["stale"].append([path, "is held against a time"])
                continue
            try:
                with open(source, "rb") as file:
                    wanted = importlib.util.source_hash(file.read())
            except OSError:
                continue  # a source that was taken away: nothing loads its bytecode
            if wanted != head[8:16]:
                found["stale"].append([path, "is of another source"])
    return found


def check(file, entry):
    try:
        with open(file.locate(), "rb") as stream:
            got = hashlib.file_digest(stream, "sha256").digest() if file.hash else b""
    except OSError:
        entry["missing"].append(str(file))
        return
    if file.hash and base64.urlsafe_b64encode(got).rstrip(b"=").decode() != file.hash.value:
        entry["wrong"].append(str(file))


def key_files():
    found = {}
    for path in KEY_FILES:
        try:
            info = os.stat(path)
            found[path] = {"mode": oct(stat.S_IMODE(info.st_mode)), "uid": info.st_uid, "size": info.st_size}
        except OSError:
            found[path] = None
    return found


def text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


def listed(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def everything():
    return {
        "tree": walk(),
        "versions": versions(),
        "key_files": key_files(),
        "profile": text("/etc/comfyrun/profile.json"),
        "constraints": text("/etc/comfyrun/constraints.txt"),
        "passwd": text("/etc/passwd"),
        "nodes": {n: listed(f"/opt/nodes/{n}") for n in listed("/opt/nodes")},
        "python": sys.version.split()[0],
    }


if sys.argv[1] == "hashes":
    json.dump({"packages": hashes(), "bytecode": bytecode()}, sys.stdout)
else:
    json.dump(everything(), sys.stdout)
