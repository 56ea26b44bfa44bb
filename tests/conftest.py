"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
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


@pytest.fixture(scope="session")
def event_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same for event frames of 16x16, of 50 ms each."""
    from training.untrained import make_untrained_bundle

    spec = msgspec.structs.replace(TINY_SPEC, input_shape=(2, 16, 16), input_kind="events")
    return make_untrained_bundle(tmp_path_factory.mktemp("bundles") / "events", spec, samples=32)


class Certificates:
    """Certificates in a folder: ``ca``, ``server`` for this machine, ``edge-one``, ``edge-two``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        """Return a file's path."""
        return str(self.folder / name)

    def server(self, *, mutual: bool = False) -> dict[str, str]:
        """Return the cloud's configuration keys."""
        keys = {"tls_certificate": self.path("server.pem"), "tls_key": self.path("server.key")}
        return keys | ({"tls_client_ca": self.path("ca.pem")} if mutual else {})

    def edge(self, name: str | None = None) -> dict[str, str]:
        """Return an edge's configuration keys, with a certificate of that name."""
        keys = {"tls_ca": self.path("ca.pem")}
        if name is None:
            return keys
        certificate, key = self.path(f"edge-{name}.pem"), self.path(f"edge-{name}.key")
        return keys | {"tls_certificate": certificate, "tls_key": key}

    def renew(self) -> None:
        """Replace everything by that of another authority."""
        from cloud_server.certs import make_certificates

        for path in self.folder.iterdir():
            path.unlink()
        make_certificates(self.folder, ["localhost", "127.0.0.1"], ["one", "two"], 30)


@pytest.fixture
def make_certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Certificates]:
    """Make certificates, of a new authority each time."""
    pytest.importorskip("cryptography", reason="makes certificates")

    def make() -> Certificates:
        certificates = Certificates(tmp_path_factory.mktemp("certificates"))
        certificates.renew()
        return certificates

    return make


@pytest.fixture
def certificates(make_certificates: Callable[[], Certificates]) -> Certificates:
    """Certificates of one authority."""
    return make_certificates()
