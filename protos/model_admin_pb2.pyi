from protos import co_inference_pb2 as _co_inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdminModel(_message.Message):
    __slots__ = ("model", "label", "path", "streams", "unloading")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    UNLOADING_FIELD_NUMBER: _ClassVar[int]
    model: _co_inference_pb2.Model
    label: str
    path: str
    streams: int
    unloading: bool
    def __init__(self, model: _Optional[_Union[_co_inference_pb2.Model, _Mapping]] = ..., label: _Optional[str] = ..., path: _Optional[str] = ..., streams: _Optional[int] = ..., unloading: _Optional[bool] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[AdminModel]
    def __init__(self, models: _Optional[_Iterable[_Union[AdminModel, _Mapping]]] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("path", "make_default")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAKE_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    path: str
    make_default: bool
    def __init__(self, path: _Optional[str] = ..., make_default: _Optional[bool] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("model", "wait_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    wait_seconds: float
    def __init__(self, model: _Optional[str] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class UnloadReply(_message.Message):
    __slots__ = ("ended_streams",)
    ENDED_STREAMS_FIELD_NUMBER: _ClassVar[int]
    ended_streams: int
    def __init__(self, ended_streams: _Optional[int] = ...) -> None: ...

class SetDefaultRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...
