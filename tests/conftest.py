"""What tests of several rooms share."""

from __future__ import annotations

import pytest
from hypothesis import settings

from shared.model.bundle import Bundle
from shared.model.spec import BottleneckSpec, NetworkSpec

# A busy machine is no failure: the suite's own time limit is the only one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TINY_SPEC = NetworkSpec(
    backbone="resnet18",
    width=0.125,
    input_shape=(3, 32, 32),
    classes=10,
    timesteps=4,
    bottleneck=BottleneckSpec(split="layer2", channels=4, stride=2, decoder=(16,)),
)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random ResNet-18 of width 0.125, 32x32 RGB, code ``[4, 8, 8]`` after layer2, T = 4."""
    from training.untrained import make_untrained_bundle

    return make_untrained_bundle(tmp_path_factory.mktemp("bundles") / "tiny", TINY_SPEC)
