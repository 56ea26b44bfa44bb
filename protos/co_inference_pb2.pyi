from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Confidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIDENCE_UNSPECIFIED: _ClassVar[Confidence]
    MAX_SOFTMAX: _ClassVar[Confidence]
    ENTROPY: _ClassVar[Confidence]
    MARGIN: _ClassVar[Confidence]

class ReplyMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLY_MODE_UNSPECIFIED: _ClassVar[ReplyMode]
    STEP: _ClassVar[ReplyMode]
    EXIT: _ClassVar[ReplyMode]

class Checksum(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHECKSUM_UNSPECIFIED: _ClassVar[Checksum]
    NONE: _ClassVar[Checksum]
    CRC16: _ClassVar[Checksum]

class SampleErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLE_ERROR_UNSPECIFIED: _ClassVar[SampleErrorCode]
    CHECK_FAILED: _ClassVar[SampleErrorCode]
    NO_SLOT: _ClassVar[SampleErrorCode]
    WORKER_LOST: _ClassVar[SampleErrorCode]
    DEADLINE: _ClassVar[SampleErrorCode]
    BAD_PACKET: _ClassVar[SampleErrorCode]
CONFIDENCE_UNSPECIFIED: Confidence
MAX_SOFTMAX: Confidence
ENTROPY: Confidence
MARGIN: Confidence
REPLY_MODE_UNSPECIFIED: ReplyMode
STEP: ReplyMode
EXIT: ReplyMode
CHECKSUM_UNSPECIFIED: Checksum
NONE: Checksum
CRC16: Checksum
SAMPLE_ERROR_UNSPECIFIED: SampleErrorCode
CHECK_FAILED: SampleErrorCode
NO_SLOT: SampleErrorCode
WORKER_LOST: SampleErrorCode
DEADLINE: SampleErrorCode
BAD_PACKET: SampleErrorCode

class Settings(_message.Message):
    __slots__ = ("alpha", "confidence", "reply_mode", "window", "steps_per_packet", "codec")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    REPLY_MODE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_PACKET_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    alpha: _containers.RepeatedScalarFieldContainer[float]
    confidence: Confidence
    reply_mode: ReplyMode
    window: int
    steps_per_packet: int
    codec: str
    def __init__(self, alpha: _Optional[_Iterable[float]] = ..., confidence: _Optional[_Union[Confidence, str]] = ..., reply_mode: _Optional[_Union[ReplyMode, str]] = ..., window: _Optional[int] = ..., steps_per_packet: _Optional[int] = ..., codec: _Optional[str] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol_version", "model_digest", "checksum", "settings", "samples_in_flight", "want_logits")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WANT_LOGITS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    model_digest: bytes
    checksum: Checksum
    settings: Settings
    samples_in_flight: int
    want_logits: bool
    def __init__(self, protocol_version: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., checksum: _Optional[_Union[Checksum, str]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., samples_in_flight: _Optional[int] = ..., want_logits: _Optional[bool] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("protocol_version", "max_window", "max_steps_per_packet", "samples_in_flight", "codecs", "packet_idle_seconds", "model")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_PER_PACKET_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    PACKET_IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    max_window: int
    max_steps_per_packet: int
    samples_in_flight: int
    codecs: _containers.RepeatedScalarFieldContainer[str]
    packet_idle_seconds: float
    model: str
    def __init__(self, protocol_version: _Optional[int] = ..., max_window: _Optional[int] = ..., max_steps_per_packet: _Optional[int] = ..., samples_in_flight: _Optional[int] = ..., codecs: _Optional[_Iterable[str]] = ..., packet_idle_seconds: _Optional[float] = ..., model: _Optional[str] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("sample", "traceparent")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    sample: int
    traceparent: str
    def __init__(self, sample: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class EdgeMessage(_message.Message):
    __slots__ = ("packets", "settings", "cancels", "open", "traces")
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    packets: _containers.RepeatedScalarFieldContainer[bytes]
    settings: Settings
    cancels: _containers.RepeatedScalarFieldContainer[int]
    open: Open
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    def __init__(self, packets: _Optional[_Iterable[bytes]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., cancels: _Optional[_Iterable[int]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("sample", "timestep", "label", "confidence", "service_microseconds", "logits")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    sample: int
    timestep: int
    label: int
    confidence: float
    service_microseconds: int
    logits: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sample: _Optional[int] = ..., timestep: _Optional[int] = ..., label: _Optional[int] = ..., confidence: _Optional[float] = ..., service_microseconds: _Optional[int] = ..., logits: _Optional[_Iterable[float]] = ...) -> None: ...

class SampleError(_message.Message):
    __slots__ = ("sample", "code", "message", "retry_after_seconds")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    sample: int
    code: SampleErrorCode
    message: str
    retry_after_seconds: float
    def __init__(self, sample: _Optional[int] = ..., code: _Optional[_Union[SampleErrorCode, str]] = ..., message: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("last_sample",)
    LAST_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    last_sample: int
    def __init__(self, last_sample: _Optional[int] = ...) -> None: ...

class CloudMessage(_message.Message):
    __slots__ = ("verdicts", "errors", "draining", "opened", "wall_microseconds")
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    WALL_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    errors: _containers.RepeatedCompositeFieldContainer[SampleError]
    draining: Draining
    opened: Opened
    wall_microseconds: int
    def __init__(self, verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[SampleError, _Mapping]]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., wall_microseconds: _Optional[int] = ...) -> None: ...

class OpenImages(_message.Message):
    __slots__ = ("protocol_version", "model_digest", "settings", "samples_in_flight")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    model_digest: bytes
    settings: Settings
    samples_in_flight: int
    def __init__(self, protocol_version: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., samples_in_flight: _Optional[int] = ...) -> None: ...

class ImageMessage(_message.Message):
    __slots__ = ("open", "input", "cancels", "traces")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    open: OpenImages
    input: SampleInput
    cancels: _containers.RepeatedScalarFieldContainer[int]
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    def __init__(self, open: _Optional[_Union[OpenImages, _Mapping]] = ..., input: _Optional[_Union[SampleInput, _Mapping]] = ..., cancels: _Optional[_Iterable[int]] = ..., traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ...) -> None: ...

class SampleInput(_message.Message):
    __slots__ = ("encoded_image", "array")
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    encoded_image: bytes
    array: Array
    def __init__(self, encoded_image: _Optional[bytes] = ..., array: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("shape", "dtype", "data")
    class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DTYPE_UNSPECIFIED: _ClassVar[Array.DType]
        UINT8: _ClassVar[Array.DType]
        FLOAT32: _ClassVar[Array.DType]
    DTYPE_UNSPECIFIED: Array.DType
    UINT8: Array.DType
    FLOAT32: Array.DType
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: Array.DType
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[Array.DType, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol_versions", "models", "server_version", "max_window", "max_steps_per_packet", "max_samples_in_flight", "max_streams")
    PROTOCOL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_PER_PACKET_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    protocol_versions: _containers.RepeatedScalarFieldContainer[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    server_version: str
    max_window: int
    max_steps_per_packet: int
    max_samples_in_flight: int
    max_streams: int
    def __init__(self, protocol_versions: _Optional[_Iterable[int]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., server_version: _Optional[str] = ..., max_window: _Optional[int] = ..., max_steps_per_packet: _Optional[int] = ..., max_samples_in_flight: _Optional[int] = ..., max_streams: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "digest", "code_shape", "input_shape", "timesteps", "slots", "slots_in_use", "whole", "is_default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_IN_USE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    digest: bytes
    code_shape: _containers.RepeatedScalarFieldContainer[int]
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    timesteps: int
    slots: int
    slots_in_use: int
    whole: bool
    is_default: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[bytes] = ..., code_shape: _Optional[_Iterable[int]] = ..., input_shape: _Optional[_Iterable[int]] = ..., timesteps: _Optional[int] = ..., slots: _Optional[int] = ..., slots_in_use: _Optional[int] = ..., whole: _Optional[bool] = ..., is_default: _Optional[bool] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("model_digest", "file", "offset")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model_digest: bytes
    file: str
    offset: int
    def __init__(self, model_digest: _Optional[bytes] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchChunk(_message.Message):
    __slots__ = ("data", "file_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    file_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., file_bytes: _Optional[int] = ...) -> None: ...
