from __future__ import annotations

from examples.scrape import Scrape
from shared.live.figures import watts

TEXT = """\
# TYPE neucodex_measured_power_watts gauge
neucodex_measured_power_watts{component="total",source="rapl"} 12.5
neucodex_measured_power_watts{component="dram",source="rapl"} 2.5
neucodex_measured_power_watts{component="total",source="external_meter"} 30.0
"""


def test_power_is_told_by_source_and_never_added_up() -> None:
    assert watts(Scrape(TEXT)) == {"rapl": 12.5, "external_meter": 30.0}
    assert watts(Scrape("")) == {}
