"""Every server that is not refused becomes valid objects."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import ServerConfig
from poolctl.features.kubernetes._keys import refused
from poolctl.features.kubernetes._objects import KubernetesPool, _quantity, moved_to_pods, objects_of
from poolctl.features.kubernetes.table import Kubernetes
from tests.examples import examples

seconds = st.floats(0.1, 1e5)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
probes = st.fixed_dictionaries(
    {"http": st.sampled_from(["/", "/a?b=c"]), "interval": seconds, "timeout": seconds},
    optional={"headers": st.dictionaries(st.sampled_from(["X-A", "Host"]), st.sampled_from(["a", "b c"]))},
)
common = {
    "scale": st.integers(1, 9).flatmap(lambda least: st.fixed_dictionaries({"min": st.just(least)})),
    "env": st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), texts, max_size=3),
    "disabled": st.booleans(),
    "start_timeout": seconds,
    "stop_timeout": seconds,
    "drain_timeout": seconds,
    "limits": st.fixed_dictionaries({"memory": st.integers(2**20, 2**40)}),
}
of_apps = st.fixed_dictionaries(
    {"bind": st.integers(1, 65535).map("127.0.0.1:{}".format), "app": st.just("a.b:c")},
    optional={
        **common,
        "factory": st.booleans(),
        "health": st.fixed_dictionaries(
            {"readiness": probes}, optional={"liveness": probes, "startup": probes}
        ),
    },
)
of_commands = st.fixed_dictionaries(
    {"command": st.lists(texts.filter(bool), min_size=1, max_size=3)},
    optional={**common, "bind": st.integers(1, 65535).map(":{}".format)},
)
settings = st.fixed_dictionaries(
    {"image": st.just("shop:1")},
    optional={
        "namespace": st.just("shop"),
        "node_lost_after": seconds,
        "stop_delay": seconds,
        "secrets": st.lists(st.just("known"), max_size=1),
        "requests": st.fixed_dictionaries({"cpu": st.just("100m")}),
    },
)


@given(keys=of_apps | of_commands, given_settings=settings)
@examples(200)
def test_every_server_becomes_valid_objects(keys: dict[str, Any], given_settings: dict[str, Any]) -> None:
    server = ServerConfig(name="web", **keys)
    assert list(refused(server)) == []
    pool = KubernetesPool("shop", Kubernetes(**given_settings))
    (moved,) = moved_to_pods([server])
    objects = list(objects_of(moved, pool))
    for each in objects:
        kubernetes_validate.validate(each, "1.37", strict=True)
    assert json.dumps(objects) == json.dumps(list(objects_of(moved, pool)))
    kinds = [each["kind"] for each in objects]
    assert ("Service" in kinds) == server.listens
    assert ("Secret" in kinds) == bool(server.env or (server.command and server.listens))
    (spec,) = (each["spec"] for each in objects if each["kind"] == "Deployment")
    assert spec["replicas"] == (0 if server.disabled else server.scale.min)
    labels = spec["template"]["metadata"]["labels"]
    assert labels == {
        **spec["selector"]["matchLabels"],
        "poolctl.dev/revision": labels["poolctl.dev/revision"],
    }


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (1500, "1500"), (200_000_000, "200M"), (2**30, str(2**30)), (5 * 10**15, "5000T")],
)
def test_memory_is_written_as_the_api_server_writes_it(size: int, text: str) -> None:
    assert _quantity(size) == text
