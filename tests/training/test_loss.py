import numpy as np
import torch

from training.fit_codec import fit_tables
from training.loss import RateModel


def striped(count: int, seed: int) -> torch.Tensor:
    """Codes ``[3, N, 2, 8, 8]``: vertical stripes that shift by one at every timestep."""
    generator = np.random.default_rng(seed)
    codes = np.zeros((3, count, 2, 8, 8), np.float32)
    for number in range(count):
        phase = generator.integers(0, 4)
        for timestep in range(3):
            codes[timestep, number, :, :, (phase + timestep) % 4 :: 4] = 1
    return torch.from_numpy(codes)


def test_the_rate_model_learns_what_a_context_tells() -> None:
    codes, model = striped(64, seed=0), RateModel(2)
    before = model(codes).item()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        model(codes).backward()
        optimiser.step()

    # At first it knows nothing: a bit a neuron. The stripes' phase is all there is to tell.
    assert 0.9 < before < 1.2
    assert model(striped(32, seed=1)).item() < 0.1
    assert fit_tables(codes.permute(1, 0, 2, 3, 4).byte().numpy()).mixing is not None


def test_no_neuron_is_predicted_from_itself_or_what_is_coded_later() -> None:
    model = RateModel(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    codes = torch.rand(1, 1, 2, 5, 5, requires_grad=True)

    # Of one neuron's bits only its own term and those of later neurons depend on it.
    (gradient,) = torch.autograd.grad(_logit(model, codes, 0, 2, 2), codes)
    seen = gradient[0, 0].abs() > 0
    assert seen[0, 1, 1:4].all() and seen[0, 2, 1]
    assert int(seen.sum()) == 4
    (gradient,) = torch.autograd.grad(_logit(model, codes, 1, 2, 2), codes)
    seen = gradient[0, 0].abs() > 0
    assert int(seen[0].sum()) == 9
    assert int(seen[1].sum()) == 4


def _logit(model: RateModel, codes: torch.Tensor, channel: int, y: int, x: int) -> torch.Tensor:
    return model.logits(codes)[0, 0, channel, y, x]


def test_bits_reach_the_encoder_as_a_gradient() -> None:
    codes = (torch.rand(2, 3, 2, 4, 4) < 0.3).float().requires_grad_()
    RateModel(2)(codes).backward()
    assert codes.grad is not None
    assert (codes.grad != 0).any()
