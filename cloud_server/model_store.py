"""The models that are served: bundles by digest, each part with its engine and scheduler."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from shared.errors import ConfigError
from shared.metrics import CloudMetrics, Part, RejectReason
from shared.model.bundle import Bundle

Load = Callable[[Bundle, Part, CloudConfig], Engine]


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
        config: the server's.
        metrics: the server's.
        load: makes the engine of a part.

    Attributes:
        codecs: names of those that edges may use, of the configured ones.

    Raises:
        BundleError: the bundle lacks the tail, or is damaged.
        ConfigError: none of the configured codecs is in the bundle.
    """

    def __init__(
        self, bundle: Bundle, label: str, config: CloudConfig, metrics: CloudMetrics, load: Load
    ) -> None:
        self.bundle = bundle
        self.digest = bytes.fromhex(bundle.digest)
        self._label = label
        self._config = config
        self._metrics = metrics
        self._load = load
        self._calibration = bundle.calibration()
        self.codecs = _codecs(bundle, config)
        self.tail = self._serve(Part.TAIL, label, load(bundle, Part.TAIL, config))
        self._whole: ServedPart | None = None
        self._whole_lock = asyncio.Lock()

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{self.bundle.manifest.name} {self.bundle.manifest.version}"

    @property
    def has_whole(self) -> bool:
        """Whether the network before the bottleneck was inserted is there."""
        return self.bundle.has("whole")

    @property
    def parts(self) -> list[ServedPart]:
        """The parts that are loaded."""
        return [part for part in (self.tail, self._whole) if part is not None]

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
                self._whole = self._serve(Part.WHOLE, f"{self._label}/whole", engine)
            return self._whole

    async def close(self) -> None:
        """Wait for the engine calls under way."""
        for part in self.parts:
            await part.scheduler.close()

    def _serve(self, part: Part, label: str, engine: Engine) -> ServedPart:
        config, bundle = self._config, self.bundle
        self._metrics.model_loaded(label, bundle.digest, bundle.spec, config.slots)
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
    """All served models.

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
        bundles = [Bundle(Path(path)) for path in config.bundles]
        labels = _labels(bundles)
        models = [
            Model(bundle, label, config, metrics, load or load_engine)
            for bundle, label in zip(bundles, labels, strict=True)
        ]
        self._models = {model.digest: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, digest: bytes) -> Model:
        """Return the model of that digest.

        Raises:
            AdmissionError: it is not served here.
        """
        try:
            return self._models[digest]
        except KeyError:
            served = ", ".join(f"{model.title} {model.digest.hex()}" for model in self)
            raise AdmissionError(
                RejectReason.VERSION_MISMATCH,
                f"expected the digest of a served model ({served}), got {digest.hex()}",
            ) from None

    @property
    def work(self) -> CloudWork:
        """What has been done since the start, all models together."""
        schedulers = [part.scheduler for model in self for part in model.parts]
        return CloudWork(
            begun=sum(each.begun for each in schedulers),
            under_way=sum(each.slots_in_use for each in schedulers),
        )

    async def close(self) -> None:
        """Wait for the engine calls under way."""
        for model in self:
            await model.close()


def load_engine(bundle: Bundle, part: Part, config: CloudConfig) -> Engine:
    """Load one part into the configured engine.

    Raises:
        BundleError: the part is absent or damaged.
        EngineError: the device cannot be used.
    """
    if config.engine == "torch":
        # Only here: importing torch costs seconds and hundreds of megabytes.
        from shared.engine import torch_engine

        return torch_engine.load_engine(bundle, part.value, device=config.device)
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
