"""Both formats, read back by Prometheus's own parsers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from poolctl.monitor.metrics import Family, render, wants_openmetrics

NASTY = 'a "quoted"\\name\nwith a line'


def families() -> list[Family]:
    counter = Family("shop_requests", "counter", 'How many; a \\ and a\nline and "quotes".')
    counter.add(12, server=NASTY)
    gauge = Family("shop_memory_bytes", "gauge", "How much.", "bytes")
    gauge.add(1.5e6, server="web")
    gauge.add(None, server="unknown")
    info = Family("shop_build", "info", "What it is.")
    info.add(1, version="1.0")
    histogram = Family("shop_duration_seconds", "histogram", "How long.", "seconds")
    histogram.spread((0.25, 1), (3, 0, 2), 7.5, server="web")
    return [counter, gauge, info, histogram, Family("shop_nothing", "gauge", "No sample.")]


def samples(found: Any) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", sample.labels.get("server", ""))): sample.value
        for family in found
        for sample in family.samples
    }


EXPECTED = {
    ("shop_requests_total", NASTY): 12.0,
    ("shop_memory_bytes", "web"): 1.5e6,
    ("shop_build_info", ""): 1.0,
    ("shop_duration_seconds_bucket", "0.25"): 3.0,
    ("shop_duration_seconds_bucket", "1.0"): 3.0,
    ("shop_duration_seconds_bucket", "+Inf"): 5.0,
    ("shop_duration_seconds_count", "web"): 5.0,
    ("shop_duration_seconds_sum", "web"): 7.5,
}


def test_text_format_is_parsed_by_prometheus_client_without_loss() -> None:
    found = list(text_families(render(families())))
    assert samples(found) == EXPECTED
    assert {family.name: family.type for family in found} == {
        "shop_requests": "counter",
        "shop_memory_bytes": "gauge",
        "shop_build_info": "gauge",
        "shop_duration_seconds": "histogram",
    }
    assert found[0].documentation == 'How many; a \\ and a\nline and "quotes".'


def test_openmetrics_is_parsed_by_prometheus_client_without_loss() -> None:
    text = render(families(), openmetrics=True)
    assert text.endswith("# EOF\n")
    found = list(openmetrics_families(text))
    assert samples(found) == EXPECTED
    assert {family.name: (family.type, family.unit) for family in found} == {
        "shop_requests": ("counter", ""),
        "shop_memory_bytes": ("gauge", "bytes"),
        "shop_build": ("info", ""),
        "shop_duration_seconds": ("histogram", "seconds"),
    }
    assert found[0].documentation == 'How many; a \\ and a\nline and "quotes".'


def test_infinity_and_nan_are_written_as_the_formats_require() -> None:
    family = Family("odd", "gauge", "Odd.")
    for name, value in (("inf", math.inf), ("minus", -math.inf), ("nan", math.nan), ("tiny", 1e-7)):
        family.add(value, server=name)
    for parsed in (text_families(render([family])), openmetrics_families(render([family], openmetrics=True))):
        read = samples(parsed)
        assert read["odd", "inf"] == math.inf
        assert read["odd", "minus"] == -math.inf
        assert math.isnan(read["odd", "nan"])
        assert read["odd", "tiny"] == 1e-7


_PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        (_PROMETHEUS, True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=0.1, text/plain", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
    ],
)  # fmt: skip
def test_openmetrics_is_chosen_for_clients_that_prefer_it(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


def test_a_name_must_end_with_its_unit() -> None:
    with pytest.raises(AssertionError):
        Family("shop_memory", "gauge", "How much.", "bytes")
