"""The models that are served: bundles by digest, each part with its engine and scheduler.

Models come and go while the server runs. One that goes takes no further streams; it is closed, and
all of it given back, when the last stream that it was lent to has ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cloud_server.admission import AdmissionError
from cloud_server.config import CloudConfig
from cloud_server.part_metrics import PartMetrics
from cloud_server.scheduler import Scheduler
from shared.engine import onnx_runtime
from shared.engine.base import Engine
from shared.errors import ConfigError, NeucodexError, ProtocolError
from shared.metrics import CloudMetrics, Part, RejectReason
from shared.model.bundle import Bundle

Load = Callable[[Bundle, Part, CloudConfig], Engine]
FEWEST_DIGITS = 6
"""Of a digest that names a model."""


class UnknownModelError(NeucodexError):
    """No model is called so, or several are."""


@dataclass(frozen=True)
class ServedPart:
    """One part of a model, ready to run for many streams."""

    name: Part
    bundle: Bundle
    scheduler: Scheduler
    metrics: PartMetrics

    @property
    def timesteps(self) -> int:
        """T, the most timesteps of one sample."""
        return self.bundle.spec.timesteps


class Model:
    """One served bundle: its tail from the start, its whole network when first asked for.

    Args:
        bundle: must hold the tail.
        label: value of the ``model`` label of the metrics.
        engine: of the tail.
        config: the server's.
        metrics: the server's.
        load: makes the engine of a part.

    Attributes:
        codecs: names of those that edges may use, of the configured ones.
        leaving: whether it takes no further streams.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: none of the configured codecs is in the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        label: str,
        engine: Engine,
        config: CloudConfig,
        metrics: CloudMetrics,
        load: Load,
    ) -> None:
        self.bundle = bundle
        self.label = label
        self.digest = bytes.fromhex(bundle.digest)
        self.leaving = False
        self._config = config
        self._metrics = metrics
        self._load = load
        self._calibration = bundle.calibration()
        self.codecs = _codecs(bundle, config)
        self.tail = self._serve(Part.TAIL, engine)
        self._whole: ServedPart | None = None
        self._whole_lock = asyncio.Lock()
        self._streams = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{self.bundle.manifest.name} {self.bundle.manifest.version}"

    def is_named_like(self, bundle: Bundle) -> bool:
        """Say whether a bundle has the same name and version."""
        mine, other = self.bundle.manifest, bundle.manifest
        return (mine.name, mine.version) == (other.name, other.version)

    @property
    def has_whole(self) -> bool:
        """Whether the network before the bottleneck was inserted is there."""
        return self.bundle.has("whole")

    @property
    def parts(self) -> list[ServedPart]:
        """The parts that are loaded."""
        return [part for part in (self.tail, self._whole) if part is not None]

    @property
    def streams(self) -> int:
        """Streams that it is lent to."""
        return self._streams

    @contextmanager
    def lent(self) -> Iterator[Model]:
        """Hold the model for one stream."""
        self._streams += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._streams -= 1
            if not self._streams:
                self._unused.set()

    async def unused(self, seconds: float | None = None) -> None:
        """Wait, for so long at most, until no stream holds it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._unused.wait()

    def refusal(self) -> AdmissionError:
        """Return what a stream is told that cannot stay on it."""
        message = f"expected a model that is served, {self.title} is being unloaded"
        return AdmissionError(RejectReason.VERSION_MISMATCH, message)

    def check_staying(self) -> None:
        """Raise AdmissionError if it takes no further streams."""
        if self.leaving:
            raise self.refusal()

    async def whole(self) -> ServedPart:
        """Return the whole network, loaded on a thread of its own the first time.

        Raises:
            AdmissionError: the bundle does not hold it.
            BundleError: it is damaged.
        """
        if not self.has_whole:
            raise AdmissionError(
                RejectReason.VERSION_MISMATCH,
                f"expected a bundle with the part 'whole', {self.title} has none",
            )
        async with self._whole_lock:
            if self._whole is None:
                engine = await asyncio.to_thread(self._load, self.bundle, Part.WHOLE, self._config)
                self._whole = self._serve(Part.WHOLE, engine)
            return self._whole

    async def close(self) -> None:
        """Wait for the engine calls under way; afterwards the metrics tell nothing of it."""
        for part in self.parts:
            await part.scheduler.close()
            self._metrics.model_unloaded(part.metrics.model)

    def _serve(self, part: Part, engine: Engine) -> ServedPart:
        config, bundle = self._config, self.bundle
        label = self.label if part is Part.TAIL else f"{self.label}/{part}"
        version = bundle.manifest.version
        self._metrics.model_loaded(label, version, bundle.digest, bundle.spec, config.slots)
        operations = self._calibration.operations.get(part.value)
        metrics = PartMetrics(self._metrics, label, part, operations)
        scheduler = Scheduler(
            engine,
            slots=config.slots,
            temperature=self._calibration.temperature,
            metrics=metrics,
            max_batch=config.max_batch,
            max_wait_seconds=config.max_wait_seconds,
            timeout_seconds=config.engine_timeout_seconds,
            reload=partial(self._load, bundle, part, config),
        )
        return ServedPart(part, bundle, scheduler, metrics)


class CloudWork(NamedTuple):
    """What a server has done so far."""

    begun: int
    """Samples."""
    under_way: int
    """Samples that hold a slot."""

    @property
    def is_idle(self) -> bool:
        """Whether no sample is under way."""
        return not self.under_way


class ModelStore:
    """All served models; of those configured, the first is the default.

    Args:
        config: names the bundles.
        metrics: the server's.
        load: makes the engine of a part; None for the configured engine.

    Raises:
        ConfigError: no bundle, or one twice.
        BundleError: a bundle cannot be read, or lacks the tail.
    """

    def __init__(
        self, config: CloudConfig, metrics: CloudMetrics, load: Load | None = None
    ) -> None:
        if not config.bundles:
            raise ConfigError("bundles: expected at least one directory (--bundle DIR), got none")
        self._config = config
        self._metrics = metrics
        self._load = load or load_engine
        self._models: dict[bytes, Model] = {}
        self._leaving: list[Model] = []
        self._loading = asyncio.Lock()
        self._begun_before = 0
        """Samples on models that are gone."""
        bundles = [Bundle(Path(path)) for path in config.bundles]
        for bundle, label in zip(bundles, _labels(bundles), strict=True):
            self._add(bundle, label, self._load(bundle, Part.TAIL, config))
        self.default = next(iter(self))
        """Runs the streams that name no model."""

    def __iter__(self) -> Iterator[Model]:
        """Iterate over the models that take streams."""
        return iter(self._models.values())

    @property
    def everything(self) -> tuple[Model, ...]:
        """The models there are, the default first and those that leave last."""
        others = [model for model in self if model is not self.default]
        return (self.default, *others, *self._leaving)

    @contextmanager
    def lent(self, digest: bytes) -> Iterator[Model]:
        """Hold the model of that digest for one stream; that of none is the default.

        Raises:
            AdmissionError: it is not served here.
            ProtocolError: it is none.
        """
        if len(digest) not in (0, 32):
            raise ProtocolError(f"expected a model digest of 32 bytes, got {len(digest)}")
        model = self._models.get(digest) if digest else self.default
        if model is None:
            served = ", ".join(f"{model.title} {model.digest.hex()}" for model in self)
            raise AdmissionError(
                RejectReason.VERSION_MISMATCH,
                f"expected the digest of a served model ({served}), got {digest.hex()}",
            )
        with model.lent():
            yield model

    def find(self, name: str) -> Model:
        """Return the model of that label, or whose digest begins so; those that leave included.

        Raises:
            UnknownModelError: there is none, or several.
        """
        found = [model for model in self.everything if model.label == name]
        if not found and len(name) >= FEWEST_DIGITS:
            found = [model for model in self.everything if model.digest.hex().startswith(name)]
        if len(found) != 1:
            there = ", ".join(f"{model.label} {model.digest.hex()}" for model in self.everything)
            raise UnknownModelError(
                f"expected the label of a model or at least the first {FEWEST_DIGITS} digits of "
                f"its digest ({there}), got {name!r}, which {len(found)} are called"
            )
        return found[0]

    async def load(self, path: Path) -> Model:
        """Serve a further bundle, read on a thread of its own.

        Raises:
            ConfigError: it is served already, or one of its name and version is.
            BundleError, EngineError: it cannot be served.
        """
        async with self._loading:
            bundle = await asyncio.to_thread(Bundle, path)
            label = self._free_label(bundle)
            engine = await asyncio.to_thread(self._load, bundle, Part.TAIL, self._config)
            return self._add(bundle, label, engine)

    def make_default(self, model: Model) -> None:
        """Let it run the streams that name no model; ConfigError if it is leaving."""
        if model.leaving:
            raise ConfigError(f"expected a model that stays, {model.title} is being unloaded")
        self.default = model

    def retire(self, model: Model) -> None:
        """Take no further streams on a model.

        Raises:
            ConfigError: it is the default, or leaving already.
        """
        if model is self.default:
            raise ConfigError(
                f"expected another default before {model.title} is unloaded, it is the default"
            )
        if model.leaving:
            raise ConfigError(f"expected a model that stays, {model.title} is being unloaded")
        model.leaving = True
        self._leaving.append(self._models.pop(model.digest))

    async def forget(self, model: Model) -> None:
        """Give back all of a model that is leaving and that no stream holds."""
        await model.close()
        self._begun_before += sum(part.scheduler.begun for part in model.parts)
        self._leaving.remove(model)

    @property
    def work(self) -> CloudWork:
        """What has been done since the start, all models together."""
        schedulers = [part.scheduler for model in self.everything for part in model.parts]
        return CloudWork(
            begun=self._begun_before + sum(each.begun for each in schedulers),
            under_way=sum(each.slots_in_use for each in schedulers),
        )

    async def close(self) -> None:
        """Wait for the engine calls under way."""
        for model in self.everything:
            await model.close()

    def _add(self, bundle: Bundle, label: str, engine: Engine) -> Model:
        model = Model(bundle, label, engine, self._config, self._metrics, self._load)
        self._models[model.digest] = model
        return model

    def _free_label(self, bundle: Bundle) -> str:
        """Return the label of a bundle that comes later.

        It always tells the version: the series of one model must not go on as another's.
        """
        label = f"{bundle.manifest.name}-{bundle.manifest.version}"
        for model in self.everything:
            if model.bundle.digest == bundle.digest:
                state = "is being unloaded" if model.leaving else "is served already"
                raise ConfigError(f"{bundle.path}: expected another bundle, {model.title} {state}")
            if label == model.label or model.is_named_like(bundle):
                raise ConfigError(
                    f"{bundle.path}: expected another name or version than {model.title}, which is "
                    "served"
                )
        return label


def load_engine(bundle: Bundle, part: Part, config: CloudConfig) -> Engine:
    """Load one part into the configured engine.

    Raises:
        BundleError: the part is absent or damaged.
        EngineError: the device cannot be used.
    """
    if config.engine == "torch":
        # Only here: importing torch costs seconds and hundreds of megabytes.
        from shared.engine import torch_engine

        return torch_engine.load_engine(
            bundle, part.value, device=config.device, max_batch=config.max_batch
        )
    return onnx_runtime.load_engine(bundle, part.value, threads=config.threads)


def _codecs(bundle: Bundle, config: CloudConfig) -> tuple[str, ...]:
    found = tuple(name for name in config.codecs if name in bundle.codecs)
    if not found:
        raise ConfigError(
            f"codecs: expected one of {', '.join(bundle.codecs)} for {bundle.path}, "
            f"got {', '.join(config.codecs)}"
        )
    return found


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """Return a metric label per bundle: its name, with its version where names repeat."""
    names = Counter(bundle.manifest.name for bundle in bundles)
    labels = [
        manifest.name if names[manifest.name] == 1 else f"{manifest.name}-{manifest.version}"
        for manifest in (bundle.manifest for bundle in bundles)
    ]
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigError(
            f"bundles: expected bundles that differ in name or version, got {', '.join(twice)} "
            "more than once"
        )
    return labels
