"""Signatures of images, by cosign with a key: no transparency log and no certificate authority is asked.

A signature lies beside the image, as cosign's own `sha256-<digest>.sig`, so
that `cosign verify --key` elsewhere reads it too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild import proc
from imgbuild.errors import ConfigError, EngineError, RegistryError, VerificationError
from imgbuild.refusals import told
from imgbuild.registry import Repository
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.reference import Reference

_TIMEOUT = 300.0  # seconds
_KMS = re.compile(r"[a-z0-9]+://")


def check(key: str, env: Mapping[str, str]) -> None:
    """EngineError without cosign; ConfigError for a key that is none. `key` is a file, or cosign's address of a KMS."""
    if proc.which("cosign", env=env) is None:
        raise EngineError(
            "the program 'cosign' is not installed, and signatures are its work",
            hint="apt-get install cosign (Debian 13 or newer; elsewhere the release of sigstore/cosign)",
        )
    if not _KMS.match(key) and not Path(key).is_file():
        raise ConfigError(
            f"there is no key {key}",
            hint="cosign generate-key-pair writes cosign.key, to sign with, and cosign.pub, to verify with",
        )


def sign(references: Sequence[Reference], key: str, env: Mapping[str, str]) -> tuple[Reference, ...]:
    """Sign images, each by digest; return those that were not signed by this key before.

    COSIGN_PASSWORD in `env` opens the key.
    """
    check(key, env)
    if "COSIGN_PASSWORD" not in env and not _KMS.match(key):
        raise ConfigError(
            f"the password of {key} is not known",
            hint="set COSIGN_PASSWORD, to nothing where the key has none",
        )
    own = _environment(env)
    done = proc.run(["cosign", "public-key", "--key", key], env=own, check=False, timeout=_TIMEOUT)
    if done.returncode:
        raise ConfigError(f"the key {key} cannot be used: {_last(done.stderr)}", hint="see COSIGN_PASSWORD")
    public = own | {"IMGBUILD_PUBLIC_KEY": done.stdout}
    missing = tuple(r for r in references if _verify(r, "env://IMGBUILD_PUBLIC_KEY", public).returncode)
    if not missing:
        return ()
    argv = ["cosign", "sign", "--yes", "--tlog-upload=false", "--key", key, *map(str, missing)]
    done = proc.run(argv, env=own, check=False, timeout=_TIMEOUT)
    if done.returncode:
        raise RegistryError(
            f"{missing[0]} was not signed: {_last(done.stderr)}",
            hint="the image's tags are where they were; repeat the command",
        )
    return missing


def verify_signature(reference: Reference, key: str, env: Mapping[str, str]) -> None:
    """Nothing, when an image is signed by the key; VerificationError when it is not.

    `reference` names it by digest: a tag could point elsewhere a moment later. `key` is the public one.
    RegistryError when the registry cannot be asked.
    """
    check(key, env)
    if reference.digest is None:
        raise ConfigError(f"{reference}: a signature is of a digest, not of a tag")
    with (
        told(str(reference), host=reference.host),
        Repository.of(reference, env=env) as repository,
    ):
        signed = repository.has_manifest(f"{reference.digest.replace(':', '-')}.sig")
    if not signed:
        raise VerificationError(
            f"{reference} is not signed", hint="have it published with imgbuild publish --sign KEY"
        )
    done = _verify(reference, key, _environment(env))
    if done.returncode:
        raise VerificationError(
            f"{reference} is not signed by {key}: {_last(done.stderr)}",
            hint="ask who publishes it for the key; do not run it before",
        )


def _verify(reference: Reference, key: str, env: Mapping[str, str]) -> proc.Result:
    argv = ["cosign", "verify", "--insecure-ignore-tlog=true", "--key", key, str(reference)]
    return proc.run(argv, env=env, check=False, timeout=_TIMEOUT)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """With this machine's certificates and proxies in the spelling of Go's programs."""
    settings = read_settings(env)
    own = {**env, **dict(settings.proxies)}
    if settings.ca_bundle:
        own["SSL_CERT_FILE"] = str(settings.ca_bundle)
    return own


def _last(text: str) -> str:
    """What cosign says went wrong, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return re.sub(r"^error:\s*", "", (errors or lines or ["no reason given"])[-1], flags=re.IGNORECASE)[:300]
