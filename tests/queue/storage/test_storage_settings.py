"""What an operator writes, and gets wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfywork.errors import ConfigError
from comfywork.storage import StorageSettings, open_storage

S3 = {"STORAGE": "s3", "S3_BUCKET": "outputs", "S3_ENDPOINT": "http://minio:9000"}
PASSWORD = "hunter2-and-more"


def read(environ: dict[str, str]) -> StorageSettings:
    return StorageSettings.from_environment(environ)


def mistakes(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        read(environ)
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def test_nothing_set_is_the_images_own_volume() -> None:
    found = read({"PATH": "/bin", "STORAGE": "", "RETENTION": ""})
    assert (found.kind, found.outputs, found.inputs) == ("volume", Path("/data/output"), Path("/data/input"))
    assert found.retention_for("acme") is None


def test_sizes_durations_and_tenants() -> None:
    found = read(
        {"STORAGE_MAX_OUTPUT": "2GiB", "STORAGE_MAX_INPUT": "512MB", "RETENTION": "7d", "RETENTION_A_B": "12h",
         "RETENTION_VIP": "never"}
    )  # fmt: skip
    assert (found.max_output, found.max_input) == (2 << 30, 512_000_000)
    assert [found.retention_for(tenant) for tenant in ("a-b", "vip", "else")] == [12 * 3600, None, 7 * 86400]


def test_every_mistake_at_once() -> None:
    text = mistakes(
        {"STORAGE": "volum", "STORAGE_MAX_OUTPUT": "big", "OUTPUTS_PATH": "here", "INPUTS_PATH": "/a/../b", "RETENTION": "5s",
         "RETENTION__X": "7d", "S3_BUKET": "x", "STORAGE_MAX_INPUT": "0"}
    )  # fmt: skip
    for sign in (
        "STORAGE=volum",
        "'volume'",
        "big",
        "OUTPUTS_PATH",
        "INPUTS_PATH",
        "RETENTION=5s",
        "RETENTION__X",
        "S3_BUCKET",
        "let nothing in",
    ):
        assert sign in text, sign


@pytest.mark.parametrize(
    ("more", "sign"),
    [
        ({"S3_BUCKET": ""}, "S3_BUCKET is not set"),
        ({"S3_BUCKET": "My_Bucket"}, "3 to 63 lower case"),
        ({"S3_ACCESS_KEY": "a"}, "S3_SECRET_KEY is not"),
        ({"S3_SECRET_KEY": PASSWORD}, "S3_ACCESS_KEY is not"),
        ({"S3_ENDPOINT": f"https://me:{PASSWORD}@host"}, "no user and no password"),
        ({"S3_ENDPOINT": f"ftp://me:{PASSWORD}@host"}, "http://"),
        ({"S3_ENDPOINT": "http://host:99999"}, "1 to 65535"),
        ({"S3_ENDPOINT": "https://host/bucket"}, "S3_BUCKET"),
        ({"S3_PREFIX": "a/../b"}, "S3_PREFIX"),
        ({"S3_ADDRESSING": "dns"}, "virtual"),
        ({"S3_CA_FILE": "/nowhere"}, "no such file"),
        ({"S3_KMS_KEY": "id"}, "aws:kms"),
        ({"S3_SECRET_KEY": PASSWORD, "S3_SECRET_KEY_FILE": "/x"}, "both set"),
        ({"S3_ACCESS_KEY": "a", "S3_SECRET_KEY_FILE": "/nowhere"}, "cannot be read"),
    ],
)
def test_mistakes_of_s3(more: dict[str, str], sign: str) -> None:
    assert sign in mistakes({**S3, **more})


def test_secrets_out_of_files_and_in_no_representation(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    found = read({**S3, "S3_ACCESS_KEY": "someone", "S3_SECRET_KEY_FILE": str(secret), "S3_PREFIX": "/a/b/"})
    assert found.s3
    assert (found.s3.secret_key, found.s3.prefix, found.s3.addressing) == (PASSWORD, "a/b/", "path")
    assert PASSWORD not in repr(found)
    for text in ("", "one\ntwo"):
        secret.write_text(text)
        assert "S3_SECRET_KEY_FILE" in mistakes(
            {**S3, "S3_ACCESS_KEY": "a", "S3_SECRET_KEY_FILE": str(secret)}
        )


def test_variables_of_kubernetes_are_left_alone() -> None:
    read(
        {
            "S3_SERVICE_HOST": "10.0.0.1",
            "S3_PORT": "tcp://10.0.0.1:80",
            "STORAGE_PORT_80_TCP_ADDR": "10.0.0.1",
        }
    )


def test_an_environment_opens_a_storage(tmp_path: Path) -> None:
    assert open_storage({"OUTPUTS_PATH": str(tmp_path), "INPUTS_PATH": str(tmp_path)}).name == "volume"
    assert open_storage(S3).name == "s3"
