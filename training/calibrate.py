"""Fit what the exit rule needs on held-out images: temperature, alpha, and the figures beside them.

Everything runs through the bundle's own graphs, the engine and the exit rule that serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.engine.base import Array, CountingEngine, zero_state
from shared.engine.onnx_runtime import load_counting_engine
from shared.engine.torch_engine import PARTS, load_network
from shared.exit_rule import Confidence, decide, expand_alpha
from shared.model.bundle import Bundle, Calibration, PartName, Preprocessing, pick_alpha
from shared.model.neuron import LIF
from shared.model.preprocessing import prepare
from shared.model.spec import NetworkSpec
from training.data.labelled import LabelledData
from training.loss_budget import BudgetAlpha, Outcomes, keep_budgets
from training.operations import Counts, counting_graph
from training.progress import SILENT, Progress

BATCH = 250
LOSS_BUDGETS_POINTS = (0.5, 1.0, 2.0)
DEFAULT_BUDGET_POINTS = 0.5
FITTING_SAMPLES = 500
"""Held-out samples that fit the temperature and the shape of alpha over the timesteps; alpha is
tested on the rest. A few numbers want no more, the test as many as it can get."""
FITTING_SHARE = 5
"""Where that would be more than one in so many, one in so many."""
CODE_LAYER = "encoder.code.lif"
"""The LIF layer whose spikes are the code."""


class LabelledFrames(NamedTuple):
    """Samples to run a network on."""

    frames: NDArray[np.uint8]
    """uint8, ``[N, C, H, W]`` (static) or ``[N, T, C, H, W]``."""
    labels: NDArray[np.int64]
    """int64, ``[N]``."""

    @staticmethod
    def of(data: LabelledData) -> LabelledFrames:
        """Return the samples of a data set."""
        return LabelledFrames(data.inputs, data.labels)


def split_held_out(data: LabelledFrames) -> tuple[LabelledFrames, LabelledFrames]:
    """Return the disjoint parts for fitting and for testing alpha.

    Fitted and tested on the same samples, alpha would look safer than it is.
    """
    cut = min(FITTING_SAMPLES, len(data.labels) // FITTING_SHARE)
    return (
        LabelledFrames(data.frames[:cut], data.labels[:cut]),
        LabelledFrames(data.frames[cut:], data.labels[cut:]),
    )


class Run(NamedTuple):
    """What a chain of engines gave over all T timesteps."""

    logits: NDArray[np.float32]
    """float32, ``[T, N, K]``."""
    firing_rates: dict[str, float]
    """Mean spikes per neuron and timestep, by LIF layer."""
    counts: tuple[Counts, ...]
    """Operations, by engine of the chain."""


class Decisions(NamedTuple):
    """The exit rule's word for every sample after every timestep."""

    labels: NDArray[np.int64]
    """int64, ``[T, N]``."""
    confidences: NDArray[np.float32]
    """float32, ``[T, N]``."""


class NamedEngine(NamedTuple):
    """An engine, and of each of its membrane arrays the name and the threshold."""

    engine: CountingEngine
    thresholds: dict[str, Array]
    """float32, by name in the engine's order; each broadcasts to its membrane array."""


def batches(
    frames: NDArray[np.uint8], spec: NetworkSpec, preprocessing: Preprocessing
) -> Iterator[list[Array]]:
    """Yield the samples in batches: for every timestep, float32 ``[n, C, H, W]``."""
    for start in range(0, len(frames), BATCH):
        prepared = [prepare(f, spec, preprocessing) for f in frames[start : start + BATCH]]
        stacked = np.stack(prepared)
        yield [stacked if stacked.ndim == 4 else stacked[:, t] for t in range(spec.timesteps)]


def run_engines(
    engines: list[NamedEngine],
    frames: NDArray[np.uint8],
    spec: NetworkSpec,
    preprocessing: Preprocessing,
    *,
    progress: Progress = SILENT,
    between: Callable[[Array], None] | None = None,
) -> Run:
    """Run every sample through the engines, one after the other, for all T timesteps.

    Args:
        engines: a chain; the last one gives the logits.
        frames: uint8, as in :class:`LabelledFrames`.
        spec: of the network.
        preprocessing: of the network.
        progress: hears of every batch.
        between: gets what the first engine gives for a batch, ``[T, n, ...]``.
    """
    logits: list[Array] = []
    spikes: dict[str, float] = {}
    counted: list[list[Array]] = [[] for _ in engines]
    progress.begin("samples through the engines", -(-len(frames) // BATCH))
    for batch in batches(frames, spec, preprocessing):
        states = [zero_state(named.engine, len(batch[0])) for named in engines]
        outputs: list[list[Array]] = [[] for _ in engines]
        operations: list[list[Array]] = [[] for _ in engines]
        for x in batch:
            for index, named in enumerate(engines):
                x, states[index], found = named.engine.count(x, states[index])
                _count_spikes(spikes, named.thresholds, states[index])
                outputs[index].append(x)
                operations[index].append(found)
        if between is not None:
            between(np.stack(outputs[0]))
        logits.append(np.stack(outputs[-1]))
        for index, steps in enumerate(operations):
            counted[index].append(np.stack(steps))
        progress.advance()
    count = len(frames) * spec.timesteps
    return Run(
        np.concatenate(logits, axis=1),
        {name: fired / count for name, fired in spikes.items()},
        tuple(
            Counts.of(named.engine, np.concatenate(each, axis=1))
            for named, each in zip(engines, counted, strict=True)
        ),
    )


def _count_spikes(
    spikes: dict[str, float], thresholds: dict[str, Array], state: tuple[Array, ...]
) -> None:
    # The reset is delayed by a timestep, so a membrane above the threshold is a spike just fired.
    for (name, threshold), membrane in zip(thresholds.items(), state, strict=True):
        fired = int(np.count_nonzero(membrane > threshold)) / membrane[0].size
        spikes[name] = spikes.get(name, 0.0) + fired


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature with the least mean negative log-likelihood over all timesteps.

    Temperature scaling after Guo et al. 2017, "On Calibration of Modern Neural Networks", Sec. 4.2,
    on the cumulative mean logits of every t, because the exit rule looks at every t.

    Args:
        logits: float32, ``[T, N, K]``, of single timesteps.
        labels: int64, ``[N]``.
    """
    means = cumulative_means(logits).astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = means / np.exp(log_temperature)
        scaled -= scaled.max(-1, keepdims=True)
        picked = np.take_along_axis(scaled, labels[None, :, None], -1)[..., 0]
        return float((np.log(np.exp(scaled).sum(-1)) - picked).mean())

    return float(np.float32(np.exp(golden_section(loss, np.log(0.01), np.log(100.0)))))


def golden_section(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function with one minimum in ``[low, high]`` is least, to 1e-4."""
    share = (np.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = loss(right)
    return float((low + high) / 2)


def cumulative_means(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of ``[T, N, K]`` over timesteps 0..t, for every t, as serving adds them."""
    steps = np.arange(1, len(logits) + 1, dtype=np.float32)
    means: NDArray[np.float32] = np.cumsum(logits, axis=0) / steps[:, None, None]
    return means


def judge(
    logits: NDArray[np.float32], temperature: float, kind: Confidence = Confidence.MAX_SOFTMAX
) -> Decisions:
    """Apply the exit rule's decision to single-timestep logits ``[T, N, K]``."""
    sums = np.cumsum(logits, axis=0, dtype=np.float64)
    decisions = [
        [decide(sample, timestep, temperature, kind) for sample in step]
        for timestep, step in enumerate(sums.tolist())
    ]
    return Decisions(
        np.array([[d.label for d in step] for step in decisions], np.int64),
        np.array([[d.confidence for d in step] for step in decisions], np.float32),
    )


def exit_timesteps(decisions: Decisions, alpha: tuple[float, ...]) -> NDArray[np.int64]:
    """Return the timestep (0-based) at which every sample exits, int64 ``[N]``.

    The rule is :func:`shared.exit_rule.exits`, for all samples at once.
    """
    fires = np.ones(decisions.confidences.shape, np.bool_)
    fires[:-1] = decisions.confidences[:-1] > np.asarray(alpha, np.float32)[:, None]
    exit_at: NDArray[np.int64] = fires.argmax(0)
    return exit_at


def answers(decisions: Decisions, exit_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return every sample's label at its exit, int64 ``[N]``."""
    found: NDArray[np.int64] = np.take_along_axis(decisions.labels, exit_at[None], 0)[0]
    return found


def exit_accuracy(
    decisions: Decisions, labels: NDArray[np.int64], exit_at: NDArray[np.int64]
) -> float:
    """Return the share of samples whose label at their exit is right."""
    return float((answers(decisions, exit_at) == labels).mean())


def calibrate(
    bundle: Bundle, data: LabelledFrames, *, threads: int = 1, progress: Progress = SILENT
) -> Calibration:
    """Measure a bundle's calibration on held-out samples.

    Args:
        bundle: with all three parts; its calibration, if any, is not read.
        data: samples that no training phase has seen.
        threads: CPU threads of the engines.
        progress: hears of every batch.
    """
    spec, preprocessing = bundle.spec, bundle.manifest.preprocessing
    engines = [named_engine(bundle, "head", threads), named_engine(bundle, "tail", threads)]
    fitting, testing = split_held_out(data)
    fitted = run_engines(engines, fitting.frames, spec, preprocessing, progress=progress)
    temperature = fit_temperature(fitted.logits, fitting.labels)
    compressed = run_engines(engines, testing.frames, spec, preprocessing, progress=progress)
    found = keep_budgets(
        outcomes(judge(fitted.logits, temperature), fitting.labels),
        outcomes(judge(compressed.logits, temperature), testing.labels),
        LOSS_BUDGETS_POINTS,
    )
    # No confidence is strictly greater than 1: every sample runs for all T timesteps.
    alpha = {"full": expand_alpha(1.0, spec.timesteps)} | {each.name: each.alpha for each in found}
    tests = {each.name: each.test for each in found}
    default_alpha = pick_alpha(DEFAULT_BUDGET_POINTS, alpha, tests)
    rates = compressed.firing_rates
    whole = [named_engine(bundle, "whole", threads)]
    uncompressed = run_engines(whole, testing.frames, spec, preprocessing, progress=progress)
    return Calibration(
        temperature=temperature,
        alpha=alpha,
        tests=tests,
        default_alpha=default_alpha,
        exit_distribution=tests[default_alpha].exit_distribution,
        firing_rates=rates | {"code": rates[CODE_LAYER]},
        operations={
            part: counts.per_timestep()
            for part, counts in zip(
                ("head", "tail", "whole"), (*compressed.counts, *uncompressed.counts), strict=True
            )
        },
        images=len(testing.labels),
        fitting_images=len(fitting.labels),
    )


def outcomes(decisions: Decisions, labels: NDArray[np.int64]) -> Outcomes:
    """Return what the decisions on samples with these labels, int64 ``[N]``, are worth."""
    return Outcomes(decisions.confidences, decisions.labels == labels)


def budget_alphas(
    bundle: Bundle,
    data: LabelledFrames,
    budgets_points: Sequence[float],
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> list[BudgetAlpha]:
    """Find the alphas of loss budgets anew, under the bundle's own temperature.

    Args:
        bundle: with head and tail.
        data: the held-out samples that the bundle was calibrated on, or others like them that
            neither training nor the temperature has seen.
        budgets_points: percentage points that may be lost against all T timesteps.
        threads: CPU threads of the engines.
        progress: hears of every batch.

    Raises:
        ValueError: a budget is not between 0 and 100.
    """
    calibration, preprocessing = bundle.calibration(), bundle.manifest.preprocessing
    temperature, kind = calibration.temperature, Confidence(calibration.confidence)
    engines = [named_engine(bundle, "head", threads), named_engine(bundle, "tail", threads)]

    def outcomes_of(part: LabelledFrames) -> Outcomes:
        run = run_engines(engines, part.frames, bundle.spec, preprocessing, progress=progress)
        return outcomes(judge(run.logits, temperature, kind), part.labels)

    fitting, testing = split_held_out(data)
    return keep_budgets(outcomes_of(fitting), outcomes_of(testing), budgets_points)


def head_codes(bundle: Bundle, frames: NDArray[np.uint8], threads: int = 1) -> NDArray[np.uint8]:
    """Return the codes of samples, uint8 ``[N, T, C', H', W']``."""
    engine, codes = named_engine(bundle, "head", threads).engine, []
    for batch in batches(frames, bundle.spec, bundle.manifest.preprocessing):
        state, steps = zero_state(engine, len(batch[0])), []
        for x in batch:
            code, state = engine.step(x, state)
            steps.append(code)
        codes.append(np.stack(steps, axis=1))
    return np.concatenate(codes).astype(np.uint8)


def named_engine(bundle: Bundle, part: PartName, threads: int = 1) -> NamedEngine:
    """Load a part with the engine that serves, its graph made to count operations."""
    chains = PARTS[part](load_network(bundle)).chains
    thresholds = {
        name: np.asarray(module.threshold, np.float32)
        for name, module in chains.named_modules()
        if isinstance(module, LIF)
    }
    states = [state.name for state in bundle.part(part).states]
    graph = counting_graph(bundle.read(bundle.part(part).graph))
    engine = load_counting_engine(bundle, part, graph, threads=threads)
    return NamedEngine(engine, {name: thresholds[name] for name in states})


def distribution(exit_at: NDArray[np.int64], timesteps: int) -> tuple[float, ...]:
    """Return the share of samples that exit at each timestep."""
    return tuple((np.bincount(exit_at, minlength=timesteps) / len(exit_at)).tolist())
