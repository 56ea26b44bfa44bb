from protos import co_inference_pb2 as _co_inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Placement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_UNSPECIFIED: _ClassVar[Placement]
    CO_INFERENCE: _ClassVar[Placement]
    EDGE_ONLY: _ClassVar[Placement]
    CLOUD_ONLY: _ClassVar[Placement]
    FALLBACK: _ClassVar[Placement]
PLACEMENT_UNSPECIFIED: Placement
CO_INFERENCE: Placement
EDGE_ONLY: Placement
CLOUD_ONLY: Placement
FALLBACK: Placement

class ClassifyRequest(_message.Message):
    __slots__ = ("input", "deadline_seconds")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    input: _co_inference_pb2.SampleInput
    deadline_seconds: float
    def __init__(self, input: _Optional[_Union[_co_inference_pb2.SampleInput, _Mapping]] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class ClassifyPart(_message.Message):
    __slots__ = ("whole", "timestep")
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    whole: ClassifyRequest
    timestep: Timestep
    def __init__(self, whole: _Optional[_Union[ClassifyRequest, _Mapping]] = ..., timestep: _Optional[_Union[Timestep, _Mapping]] = ...) -> None: ...

class Timestep(_message.Message):
    __slots__ = ("frame", "last")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    frame: _co_inference_pb2.Array
    last: bool
    def __init__(self, frame: _Optional[_Union[_co_inference_pb2.Array, _Mapping]] = ..., last: _Optional[bool] = ...) -> None: ...

class Latency(_message.Message):
    __slots__ = ("total_seconds", "queue_seconds", "input_seconds", "head_seconds", "codec_seconds", "transport_seconds", "service_seconds", "tail_seconds")
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CODEC_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TAIL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    total_seconds: float
    queue_seconds: float
    input_seconds: float
    head_seconds: float
    codec_seconds: float
    transport_seconds: float
    service_seconds: float
    tail_seconds: float
    def __init__(self, total_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., input_seconds: _Optional[float] = ..., head_seconds: _Optional[float] = ..., codec_seconds: _Optional[float] = ..., transport_seconds: _Optional[float] = ..., service_seconds: _Optional[float] = ..., tail_seconds: _Optional[float] = ...) -> None: ...

class ClassifyReply(_message.Message):
    __slots__ = ("label", "name", "confidence", "timesteps_used", "placement", "latency", "payload_bytes", "error")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEPS_USED_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    label: int
    name: str
    confidence: float
    timesteps_used: int
    placement: Placement
    latency: Latency
    payload_bytes: int
    error: str
    def __init__(self, label: _Optional[int] = ..., name: _Optional[str] = ..., confidence: _Optional[float] = ..., timesteps_used: _Optional[int] = ..., placement: _Optional[_Union[Placement, str]] = ..., latency: _Optional[_Union[Latency, _Mapping]] = ..., payload_bytes: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "model", "model_digest", "cloud", "connected", "placement", "answered", "queue_depth", "network")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CLOUD_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: str
    model_digest: bytes
    cloud: str
    connected: bool
    placement: str
    answered: int
    queue_depth: int
    network: Network
    def __init__(self, version: _Optional[str] = ..., model: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., cloud: _Optional[str] = ..., connected: _Optional[bool] = ..., placement: _Optional[str] = ..., answered: _Optional[int] = ..., queue_depth: _Optional[int] = ..., network: _Optional[_Union[Network, _Mapping]] = ...) -> None: ...

class Network(_message.Message):
    __slots__ = ("input_shape", "events", "timesteps", "labels", "framed_by", "window")
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FRAMED_BY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    events: bool
    timesteps: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    framed_by: str
    window: int
    def __init__(self, input_shape: _Optional[_Iterable[int]] = ..., events: _Optional[bool] = ..., timesteps: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., framed_by: _Optional[str] = ..., window: _Optional[int] = ...) -> None: ...
