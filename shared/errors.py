"""Every error the package raises on purpose.

::

    NeucodexError
    ├── ConfigError        a configuration file or flag is wrong
    ├── BundleError        a model bundle is missing, damaged or not what was asked for
    ├── CodecError         bytes that are not a valid packet or code word
    │   └── CheckError     a packet decoded, but its check says it is not what was sent
    ├── EngineError        an inference engine failed or returned non-finite logits
    ├── InputError         a caller's image or array cannot be used
    ├── ProtocolError      the peer broke the protocol; ends the stream
    ├── RefusedError       the cloud refused the stream (version, digest, credentials, limits)
    ├── LinkLostError      the stream to the cloud ended without either side asking
    ├── SensorError        a power sensor cannot be read; ``reason`` says why
    └── SampleError        one sample ended without an answer; ``code`` says why
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class NeucodexError(Exception):
    """Base of all errors of this package."""


class ConfigError(NeucodexError):
    """A configuration file or flag is wrong."""


class BundleError(NeucodexError):
    """A model bundle is missing, damaged or not what was asked for."""


class CodecError(NeucodexError):
    """Bytes that are not a valid packet or code word."""


class CheckError(CodecError):
    """A packet's check differs from that of the bits it decoded to."""


class EngineError(NeucodexError):
    """An inference engine failed or returned non-finite logits."""


class InputError(NeucodexError):
    """A caller's image or array cannot be used."""


class ProtocolError(NeucodexError):
    """The peer broke the protocol; the stream cannot go on."""


class RefusedError(NeucodexError):
    """The cloud refused the stream."""


class LinkLostError(NeucodexError):
    """The stream to the cloud ended without either side asking."""


class SensorReason(StrEnum):
    """Why a power sensor cannot be read."""

    PERMISSION = "permission"
    ABSENT = "absent"
    """It was there before, or a part of it is missing."""
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    FAILED = "failed"


class SensorError(NeucodexError):
    """A power sensor cannot be read.

    Args:
        reason: why, in one of a few words.
        message: what was expected and what came.
    """

    def __init__(self, reason: SensorReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @staticmethod
    def of(error: OSError, what: object) -> SensorError:
        """Return what an error of the system comes to, when ``what`` was read."""
        reason = SensorReason.FAILED
        if isinstance(error, PermissionError):
            reason = SensorReason.PERMISSION
        elif isinstance(error, FileNotFoundError):
            reason = SensorReason.ABSENT
        elif isinstance(error, TimeoutError):
            reason = SensorReason.TIMEOUT
        return SensorError(reason, f"{what}: {error.strerror or error}")


class SampleCode(IntEnum):
    """Why a sample ended without an answer; the numbers are those on the wire."""

    CHECK_FAILED = 1
    NO_SLOT = 2
    WORKER_LOST = 3
    DEADLINE = 4
    BAD_PACKET = 5


class SampleError(NeucodexError):
    """One sample ended without an answer.

    Args:
        code: why.
        message: what was expected and what came.
        retry_after_seconds: with NO_SLOT, when to ask again.
    """

    def __init__(self, code: SampleCode, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds
