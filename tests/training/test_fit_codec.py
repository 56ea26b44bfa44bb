import numpy as np
import pytest
from numpy.typing import NDArray

from shared.codec.context_codec import ContextCodec, MixingCodec
from shared.codec.context_model import load_tables, save_tables
from training.fit_codec import MAPS, fit_mixing, fit_rates, fit_tables, most_maps, squash_table


def blobs(count: int, seed: int) -> NDArray[np.uint8]:
    """Codes ``[N, 3, 2, 8, 8]``: a moving bar per sample; channel 1 fires where channel 0 does
    not and is itself repeated by half of its neurons at the next timestep."""
    generator = np.random.default_rng(seed)
    codes = np.zeros((count, 3, 2, 8, 8), np.uint8)
    for sample in codes:
        row = generator.integers(0, 6)
        for timestep, frame in enumerate(sample):
            frame[0, (row + timestep) % 8] = 1
            frame[1] = 1 - frame[0]
            frame[:] ^= (generator.random(frame.shape) < 0.02).astype(np.uint8)
    return codes


def bytes_per_sample(codec: ContextCodec | MixingCodec, codes: NDArray[np.uint8]) -> float:
    total = 0
    for sample in codes:
        frames = sample.reshape(len(sample), -1)
        for timestep in range(len(frames)):
            word = codec.encode(frames[timestep : timestep + 1], list(frames[:timestep]))
            total += len(word)
    return total / len(codes)


def test_the_fitted_models_find_the_structure_of_unseen_codes() -> None:
    tables = load_tables(save_tables(fit_tables(blobs(200, seed=0))))
    unseen = blobs(50, seed=1)

    table, mixed = (bytes_per_sample(kind(tables), unseen) for kind in (ContextCodec, MixingCodec))

    # Packed: 48 bytes. The noise alone has 0.14 bits a neuron: 6.8 bytes.
    assert mixed < table < 24
    assert mixed > 6.8


def exclusive(count: int, seed: int) -> NDArray[np.uint8]:
    """Codes ``[N, 3, 2, 8, 8]``: channel 0 is noise; channel 1 fires where exactly one of the
    neurons W and E of it in channel 0 does. No sum of these two tells."""
    codes = (np.random.default_rng(seed).random((count, 3, 2, 8, 8)) < 0.5).astype(np.uint8)
    padded = np.pad(codes[:, :, 0], ((0, 0), (0, 0), (0, 0), (1, 1)))
    codes[:, :, 1] = padded[..., :-2] ^ padded[..., 2:]
    return codes


def test_hidden_units_find_what_no_sum_tells() -> None:
    codes, unseen = exclusive(1000, seed=0), exclusive(20, seed=1)
    tables = fit_tables(codes)
    plain = tables._replace(mixing=fit_mixing(codes, fit_rates(codes), maps=1))

    # Of 16 bytes a frame the 8 of channel 0 cannot be saved.
    assert bytes_per_sample(MixingCodec(plain), unseen) > 3 * 15
    assert bytes_per_sample(MixingCodec(tables), unseen) < 3 * 11


def test_a_network_for_very_many_channels_has_no_hidden_units_or_is_left_out() -> None:
    assert most_maps((64, 32, 32), 4) == MAPS
    assert most_maps((256, 4, 4), 4) == 1
    assert most_maps((512, 2, 2), 4) == 0
    assert fit_tables(np.zeros((2, 1, 512, 1, 1), np.uint8)).mixing is None


def test_places_count_by_timestep() -> None:
    # Half of the places fire at t = 0, the others at t = 1, each half the time: no context tells.
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 2, (400, 2, 1, 6, 6), dtype=np.uint8)
    even = np.arange(36).reshape(6, 6) % 2 == 0
    codes[:, 0, :, ~even] = 0
    codes[:, 1, :, even] = 0
    tables = load_tables(save_tables(fit_tables(codes)))
    # 18 bits of a frame are chance.
    assert bytes_per_sample(MixingCodec(tables), codes[:100]) < 2 * (18 / 8 + 0.75)


def test_the_same_codes_give_the_same_tables() -> None:
    codes = blobs(40, seed=2)

    assert save_tables(fit_tables(codes)) == save_tables(fit_tables(codes))


def test_contexts_never_seen_lean_on_more_general_ones() -> None:
    silent = np.zeros((10, 2, 1, 4, 4), np.uint8)

    rates = fit_rates(silent)

    assert rates.shape == (2, 1, 256)
    assert (rates > 0).all()
    assert (rates < 0.01).all()


def test_logits_and_probabilities_belong_together() -> None:
    squash = squash_table()

    assert squash[2048] == 32768
    assert (np.diff(squash.astype(int)) >= 0).all()
    assert squash[2048 + 256] == round(65536 / (1 + np.exp(-1)))
    assert squash.min() >= 1


@pytest.mark.parametrize("shape", [(0, 2, 1, 4, 4), (2, 1, 4, 4)])
def test_codes_must_be_samples_of_frames(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected codes \[N, T, C, H, W\]"):
        fit_tables(np.zeros(shape, np.uint8))
