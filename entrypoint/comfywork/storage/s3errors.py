"""What an error of S3 means, and the next step. No message holds a key's secret or a signed address."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore import exceptions

from comfywork.storage.errors import StorageError

if TYPE_CHECKING:
    from datetime import datetime

MISSING = ("NoSuchKey", "404", "NotFound")
_NOT_FOUND = 404
_FORBIDDEN = 403
_SLOW = (
    "SlowDown",
    "TooManyRequests",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "503",
    "429",
)
_DOWN = (
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "OperationAborted",
    "500",
    "502",
    "504",
    "408",
)
_FULL = ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "507")
_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301")


def code(error: exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status(error: exceptions.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_missing(error: exceptions.ClientError) -> bool:
    return code(error) in MISSING and status(error) == _NOT_FOUND


def told(error: Exception, *, endpoint: str, bucket: str, now: datetime) -> StorageError:
    """`endpoint` without user or password; `now` is this machine's time, beside which the storage's is put."""
    if isinstance(error, exceptions.ClientError):
        return _answered(error, f"bucket {bucket} at {endpoint}", now)
    return _unanswered(error, endpoint)


def _answered(error: exceptions.ClientError, where: str, now: datetime) -> StorageError:  # noqa: C901, PLR0911 - one return a cause
    found, number = code(error), status(error)
    said = str(error.response.get("Error", {}).get("Message", "")) or f"HTTP {number}"
    if found == "NoSuchBucket":
        return _final(f"there is no {where}", "make it, or set S3_BUCKET to one that is there")
    if found in ("RequestTimeTooSkewed", "RequestExpired"):
        return StorageError(
            f"{where} refuses this machine's requests for its clock{_skew(error.response, now)}",
            hint="set the clock (chrony, systemd-timesyncd); a container has its host's",
            retryable=True,  # from another worker
        )
    if found == "InvalidAccessKeyId":
        return _final(
            f"{where} does not know S3_ACCESS_KEY", "set it, or S3_ACCESS_KEY_FILE, to one that it knows"
        )
    if found == "SignatureDoesNotMatch":
        return _final(
            f"{where} refuses the signature{_skew(error.response, now)}",
            "S3_SECRET_KEY is not that of S3_ACCESS_KEY, or a proxy changes the Host header",
        )
    if found in _REGION:
        region = error.response.get("Error", {}).get("Region") or _header(
            error.response, "x-amz-bucket-region"
        )
        return _final(
            f"{where} is in another region ({said})",
            f"set S3_REGION{f'={region}' if region else ''}, or S3_ENDPOINT to that region's",
        )
    if found in _FULL:
        return StorageError(
            f"{where} is full ({said})", hint="make room there, or shorten RETENTION", retryable=True
        )
    if found in _SLOW:
        return StorageError(
            f"{where} takes no more requests for now ({found})",
            hint="it was asked several times; fewer workers, or a larger quota there",
            retryable=True,
        )
    if found == "EntityTooLarge":
        return _final(
            f"{where} takes no object as large as this", "lower STORAGE_MAX_OUTPUT, or raise its limit"
        )
    if found in ("InvalidBucketName", "InvalidBucketState"):
        return _final(f"{where}: {said}", "set S3_BUCKET to the name of a bucket that is there")
    if number == _FORBIDDEN or found == "AccessDenied":
        return _final(
            f"{where} does not allow it to this key ({error.operation_name}: {said})",
            "it needs s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucketMultipartUploads, and "
            "ListBucket (without which a missing object looks forbidden); HEAD requests say 403 for a wrong key as well",
        )
    if number == _NOT_FOUND:
        return _final(f"there is no {where} (HTTP 404)", "set S3_BUCKET and S3_ENDPOINT to what is there")
    if found in _DOWN or number >= 500:  # noqa: PLR2004
        return StorageError(
            f"{where} failed ({found or number}: {said})", hint="look at that server's log", retryable=True
        )
    return _final(
        f"{where}: {found or number}: {said}",
        f"{error.operation_name} was refused; look at that server's log",
    )


def _unanswered(error: Exception, endpoint: str) -> StorageError:  # noqa: PLR0911 - one return a cause
    if isinstance(error, exceptions.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return _final(
                f"{endpoint} has a certificate that is not trusted here",
                "S3_CA_FILE (or AWS_CA_BUNDLE, SSL_CERT_FILE) names the authority that signed it",
            )
        return _final(f"no TLS with {endpoint}", "if that server speaks without TLS: S3_ENDPOINT=http://…")
    if isinstance(error, exceptions.ProxyConnectionError):
        return StorageError(
            f"the proxy on the way to {endpoint} cannot be reached",
            hint="HTTPS_PROXY or HTTP_PROXY is set; NO_PROXY names what needs none",
            retryable=True,
        )
    if isinstance(error, exceptions.EndpointConnectionError):
        return StorageError(
            f"{endpoint} cannot be reached{_cause(error)}",
            hint="is it running, and is S3_ENDPOINT its address as seen from here?",
            retryable=True,
        )
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)):
        return StorageError(
            f"{endpoint} does not answer in time",
            hint="it is overloaded, or a firewall drops the packets",
            retryable=True,
        )
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return _final(
            f"there is no key for {endpoint}",
            "set S3_ACCESS_KEY and S3_SECRET_KEY (or …_FILE), or give the machine a role",
        )
    if isinstance(error, (exceptions.CredentialRetrievalError, exceptions.MetadataRetrievalError)):
        return StorageError(
            f"this machine's role gives no key for {endpoint}",
            hint="try again, or set S3_ACCESS_KEY",
            retryable=True,
        )
    if isinstance(error, exceptions.ParamValidationError):
        return _final(f"{endpoint}: a request cannot be made of the settings", "look at the S3_ settings")
    return StorageError(
        f"the connection to {endpoint} broke{_cause(error)}",
        hint="it is tried again; if it goes on, look at the network between",
        retryable=True,
    )


def _final(message: str, hint: str) -> StorageError:
    return StorageError(message, hint=hint, retryable=False)


def _cause(error: Exception) -> str:
    """What the network said, and none of botocore's words: they repeat the whole address."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = (
            getattr(at, "reason", None)
            if isinstance(getattr(at, "reason", None), BaseException)
            else at.__cause__
        )
        if at is None and isinstance(kwargs := getattr(seen[-1], "kwargs", None), dict):
            inner = kwargs.get("error")
            at = inner if isinstance(inner, BaseException) else None
    for one in reversed(seen):
        if isinstance(one, OSError) and one.strerror:
            return f" ({one.strerror})"
    text = " ".join(str(one) for one in seen)
    for sign, words in (
        ("refused", "connection refused"),
        ("reset", "connection reset"),
        ("resolve", "its name has no address"),
        ("not known", "its name has no address"),
    ):
        if sign in text:
            return f" ({words})"
    return ""


def _skew(response: Any, now: datetime) -> str:
    there = date_of(response)
    if there is None:
        return ""
    seconds = (now - there).total_seconds()
    if abs(seconds) < 60:  # noqa: PLR2004
        return ""
    return (
        f" (this machine's clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} its own)"
    )


def date_of(response: Any) -> datetime | None:
    """The time at which a server says that it answered."""
    text = _header(response, "date")
    try:
        return parsedate_to_datetime(text) if text else None
    except ValueError:
        return None


def _header(response: Any, name: str) -> str:
    return str(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name, ""))
