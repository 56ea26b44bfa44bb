from __future__ import annotations

import pytest

from examples.scrape import Scrape

TEXT = """\
# TYPE neucodex_edge_payload_bytes_total counter
neucodex_edge_payload_bytes_total{direction="sent",model="m"} 40.0
neucodex_edge_payload_bytes_total{direction="received",model="m"} 2.0
# TYPE neucodex_edge_payload_bytes_totals counter
neucodex_edge_payload_bytes_totals 1.0
# TYPE neucodex_edge_timesteps_used histogram
neucodex_edge_timesteps_used_bucket{exit_reason="confident",le="1.0"} 3.0
neucodex_edge_timesteps_used_bucket{exit_reason="confident",le="2.0"} 5.0
neucodex_edge_timesteps_used_bucket{exit_reason="confident",le="+Inf"} 5.0
neucodex_edge_timesteps_used_bucket{exit_reason="max_timesteps",le="1.0"} 0.0
neucodex_edge_timesteps_used_bucket{exit_reason="max_timesteps",le="2.0"} 0.0
neucodex_edge_timesteps_used_bucket{exit_reason="max_timesteps",le="+Inf"} 4.0
# TYPE neucodex_model_info gauge
neucodex_model_info{model="m",timesteps="4"} 1.0
# TYPE neucodex_edge_retries_total counter
"""


@pytest.fixture
def scraped() -> Scrape:
    return Scrape(TEXT)


def test_series_are_summed_over_the_labels_not_named(scraped: Scrape) -> None:
    assert scraped.total("edge_payload_bytes_total") == 42
    assert scraped.total("edge_payload_bytes_total", direction="sent") == 40
    assert scraped.total("edge_payload_bytes_total", direction="none") == 0


def test_a_counter_that_never_counted_is_zero_and_an_unknown_one_an_error(scraped: Scrape) -> None:
    assert scraped.total("edge_retries_total") == 0
    assert not scraped.has("edge_wire_bytes_total")
    with pytest.raises(LookupError, match="neucodex_edge_wire_bytes_total, the daemon has none"):
        scraped.total("edge_wire_bytes_total")


def test_buckets_are_told_one_by_one(scraped: Scrape) -> None:
    assert scraped.histogram("edge_timesteps_used") == {1: 3, 2: 2, float("inf"): 4}
    assert scraped.histogram("edge_timesteps_used", exit_reason="confident")[float("inf")] == 0


def test_an_info_metric_tells_its_labels(scraped: Scrape) -> None:
    assert scraped.info("model") == {"model": "m", "timesteps": "4"}
