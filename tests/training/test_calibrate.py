from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.exit_rule import exits, expand_alpha
from shared.model.bundle import Bundle, alpha_names
from training.calibrate import (
    CODE_LAYER,
    Decisions,
    LabelledFrames,
    calibrate,
    distribution,
    exit_timesteps,
    fit_temperature,
    golden_section,
    judge,
    split_held_out,
)
from training.evaluate import evaluate
from training.untrained import synthetic_frames


def random_logits(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (4, 200, 10)).astype(np.float32)


def labels_drawn_from(logits: NDArray[np.float32], temperature: float) -> NDArray[np.int64]:
    generator = np.random.default_rng(1)
    exponentials = np.exp(logits.mean(0) / temperature)
    return np.array([generator.choice(10, p=row / row.sum()) for row in exponentials])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_is_that_the_labels_were_drawn_with(temperature: float) -> None:
    # The same logits at every timestep, so that the mean over timesteps is the logits.
    logits = np.repeat(random_logits()[:1], 4, axis=0)

    assert fit_temperature(logits, labels_drawn_from(logits, temperature)) == pytest.approx(
        temperature, rel=0.25
    )


@given(st.floats(-5, 5))
def test_golden_section_finds_the_minimum(minimum: float) -> None:
    assert golden_section(lambda x: (x - minimum) ** 2, -6, 6) == pytest.approx(minimum, abs=1e-3)


@given(st.integers(0, 1000), st.floats(0, 1), st.booleans())
def test_exit_timesteps_are_those_of_the_exit_rule(seed: int, alpha: float, exact: bool) -> None:
    confidences = np.random.default_rng(seed).random((4, 20)).astype(np.float32)
    decisions = Decisions(np.zeros((4, 20), np.int64), confidences)
    expanded = expand_alpha(float(confidences[0, 3]) if exact else alpha, 4)

    found = exit_timesteps(decisions, expanded)

    for sample in range(20):
        first = next(t for t in range(4) if exits(float(confidences[t, sample]), t, expanded))
        assert found[sample] == first


@pytest.mark.parametrize(
    ("held_out", "fitting"), [(5500, 500), (2500, 500), (2499, 499), (300, 60), (8, 1)]
)
def test_nearly_all_held_out_samples_test_alpha(held_out: int, fitting: int) -> None:
    data = LabelledFrames(np.zeros((held_out, 1, 1, 1), np.uint8), np.arange(held_out))

    fit, test = split_held_out(data)

    assert fit.labels.tolist() == list(range(fitting))
    assert test.labels.tolist() == list(range(fitting, held_out))


def test_distribution() -> None:
    assert distribution(np.array([0, 0, 2, 3]), 4) == (0.5, 0.0, 0.25, 0.25)


def test_judge_is_the_exit_rule_on_cumulative_means() -> None:
    logits = np.array([[[4.0, 0.0]], [[0.0, 8.0]]], np.float32)

    decisions = judge(logits, 2.0)

    assert decisions.labels.tolist() == [[0], [1]]
    assert decisions.confidences[:, 0] == pytest.approx(
        [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))]
    )


def test_calibration_of_a_network(tiny_bundle: Bundle) -> None:
    spec, written = tiny_bundle.spec, tiny_bundle.calibration()

    names = {name for points in (0.5, 1, 2) for name in alpha_names(points)}
    assert set(written.alpha) == {"full", "median"} | names
    assert set(written.tests) == names
    assert {test.images for test in written.tests.values()} == {written.images}
    assert all(len(alpha) == spec.timesteps - 1 for alpha in written.alpha.values())
    assert written.alpha["full"] == (1.0, 1.0, 1.0)
    assert written.default_alpha in written.alpha
    assert sum(written.exit_distribution) == pytest.approx(1)
    # The test network is made so that some samples exit early and some late.
    assert min(written.exit_distribution) > 0
    layers = {state.name for part in ("head", "tail") for state in tiny_bundle.part(part).states}
    assert set(written.firing_rates) == {"code", *layers}
    assert written.firing_rates["code"] == written.firing_rates[CODE_LAYER]
    assert all(0 < rate < 1 for rate in written.firing_rates.values())
    assert set(written.operations) == {"head", "tail", "whole"}


def test_calibration_and_evaluation_agree_on_the_same_samples(tiny_bundle: Bundle) -> None:
    frames = synthetic_frames(tiny_bundle.spec, 40, seed=9)
    labels = np.random.default_rng(0).integers(0, 10, 40)
    data = LabelledFrames(frames, labels)

    calibration = calibrate(tiny_bundle, data)
    evaluation = evaluate(tiny_bundle, data, "made-up")

    assert calibration.default_alpha == "loss_budget_0.5_points"
    assert (calibration.fitting_images, calibration.images, evaluation.images) == (8, 32, 40)
    assert evaluation.firing_rates_compressed["code"] == pytest.approx(
        calibration.firing_rates["code"], rel=0.2
    )
    assert evaluation.code_bits_per_timestep == 256
    assert len(evaluation.accuracy_whole) == len(evaluation.accuracy_compressed) == 4
    assert evaluation.digest == tiny_bundle.digest
