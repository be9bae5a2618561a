"""docs/kubernetes.md and the examples: their files are exported as they are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT, blocks

from .valid_objects import assert_valid

PAGE = ROOT / "docs" / "kubernetes.md"
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/pool.toml"))
SETTINGS = (
    '[kubernetes]\nimage = "registry.example.com/shop:1.4"\n'
    'node_lost_after = "5s"\nrequests = { cpu = "100m", memory = "128M" }\ningress_class = "nginx"\n'
)
# What no cluster has of an example.
CHANGES = {
    "background-work": '[[server]]\nname = "worker"\nnotify = false\n',
    "gateway": '[[server]]\nname = "chat"\nscale = { min = 1, max = 1 }\n',
    "http-and-https": '[[server]]\nname = "https"\ntls = false\n',
}
WITHOUT_ROUTES = {"gateway"}  # one of its routes leads out of the cluster


def test_file_is_exported(poolctl: Any, directory: Path) -> None:
    text, keys_of_routes = (each.text for each in blocks(PAGE) if each.language == "toml")
    (directory / "pool.toml").write_text(text)
    (command,) = (each.text for each in blocks(PAGE) if each.language == "sh")
    done = poolctl(*command.split()[1:])
    assert (done.code, "warning" in done.err) == (0, False), done.err
    (line,) = (line for line in keys_of_routes.splitlines() if line.startswith("gateway"))
    text = text.replace("[kubernetes]\n", f"[kubernetes]\n{line}\n")
    (directory / "pool.toml").write_text(f'{text}\n[[route]]\nto = "web"\n')
    assert "HTTPRoute" in poolctl("export", "kubernetes").out
    assert sorted(path.name for path in (directory / "cluster").iterdir()) == [
        "kustomization.yaml",
        "server-users.yaml",
        "server-web.yaml",
    ]


def export_example(example: str, poolctl: Any, directory: Path) -> list[dict[str, Any]]:
    """The objects of an example's pool."""
    more = directory / "kubernetes.toml"
    settings = SETTINGS.replace("ingress_class", "# ") if example in WITHOUT_ROUTES else SETTINGS
    more.write_text(settings + CHANGES.get(example, ""))
    files = ["-c", str(ROOT / "examples" / example / "pool.toml"), "-c", str(more)]
    done = poolctl(*files, "export", "kubernetes", "-o", "json")
    assert done.code == 0, done.err
    return [each for item in done.json["items"] for each in yaml.safe_load_all(item["text"])]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_is_exported(example: str, poolctl: Any, directory: Path) -> None:
    kinds = {each["kind"] for each in export_example(example, poolctl, directory)}
    assert kinds >= {"ConfigMap", "Deployment"}


def test_claims_of_examples_are_in_the_wave_of_their_first_pods() -> None:
    claims = [
        each
        for path in (ROOT / "examples").glob("*/overlays/**/*.yaml")
        for each in yaml.safe_load_all(path.read_text())
        if isinstance(each, dict) and each.get("kind") == "PersistentVolumeClaim"
    ]
    assert claims
    assert [each["metadata"] for each in claims if "annotations" in each["metadata"]] == []


def write_pool_and_overlay(directory: Path) -> None:
    """Write the page's file, with a route through its Gateway, and its overlay."""
    text = next(each.text for each in blocks(PAGE) if each.language == "toml")
    text = text.replace("[kubernetes]\n", '[kubernetes]\ngateway = "edge"\n')
    (directory / "pool.toml").write_text(f'{text}\n[[route]]\nto = "web"\n')
    (directory / "overlays/production").mkdir(parents=True)
    for each in blocks(PAGE):
        if each.text.startswith("# overlays/"):
            first, _, rest = each.text.partition("\n")
            (directory / first.removeprefix("# ")).write_text(rest)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl has kustomize")
def test_overlay_beside_the_directory_survives_the_next_export(poolctl: Any, directory: Path) -> None:
    write_pool_and_overlay(directory)
    for _ in range(2):
        assert poolctl("export", "kubernetes", "--directory", "cluster").code == 0
        command = ["kubectl", "kustomize", "overlays/production"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        objects = [*yaml.safe_load_all(done.stdout)]
        names = [each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"]
        assert sorted(names) == ["shop-users", "shop-web"]
        (pod,) = (
            each["spec"]["template"]["spec"]
            for each in objects
            if (each["kind"], each["metadata"]["name"]) == ("Deployment", "shop-web")
        )
        assert pod["nodeSelector"] == {"disk": "ssd"}
        assert {each["name"] for each in pod["volumes"]} == {"config", "tmp", "uploads"}
        assert "/app/uploads" in {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
        (route,) = (each for each in objects if each["kind"] == "HTTPRoute")
        assert route["spec"]["rules"][0]["timeouts"] == {"backendRequest": "10s"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl has kustomize")
@pytest.mark.parametrize(
    ("example", "uses"),
    [("cluster", {"web", "worker", "admin", "migrate"}), ("django", {"gallery", "editors"})],
)
def test_example_is_exported_with_its_overlay(
    poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, example: str, uses: set[str]
) -> None:
    source = ROOT / "examples" / example
    shutil.copytree(source, directory / example, ignore=shutil.ignore_patterns("data", ".venv"))
    monkeypatch.chdir(directory / example)
    lines = (each.text for each in blocks(source / "README.md") if each.language == "sh")
    (line,) = (line for text in lines for line in text.splitlines() if " export kubernetes " in line)
    done = poolctl(*line.split()[1:])
    assert done.code == 0, done.err
    command = ["kubectl", "kustomize", "overlays/production"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    objects = [*yaml.safe_load_all(built)]
    for each in objects:
        assert_valid(each)
    assert uses == {
        each["metadata"]["labels"]["poolctl.dev/server"]
        for each in objects
        if "claimName" in str(each.get("spec", {}).get("template"))
    }
    assert {each["metadata"]["namespace"] for each in objects} == {
        "shop" if example == "cluster" else "gallery"
    }
    assert [each for each in objects if each["kind"] == "Secret"] == []
