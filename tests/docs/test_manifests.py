"""Manifests, units and workflows are valid for the programs that read them, and call paths that hubbub serves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from docs.blocks import ROOT, blocks


def files_of(page: str) -> dict[str, str]:
    """The blocks of a how-to page that are files, by name."""
    return {block.title: block.code for block in blocks(ROOT / f"docs/howto/{page}.md") if block.title is not None}


def test_manifests_of_kubernetes_are_valid_and_ask_what_the_gateway_answers() -> None:
    documents = list(yaml.safe_load_all(files_of("kubernetes")["chat.yaml"]))
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    by_kind = {document["kind"]: document for document in documents}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    assert container["command"][:2] == ["hubbub", "serve"]
    [pause] = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
    assert pod["terminationGracePeriodSeconds"] > pause + 30
    assert re.fullmatch(r"[\d* ]+", by_kind["CronJob"]["spec"]["schedule"])


WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
FORMS = [ROOT / f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "proposal")]


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("compose-spec", [ROOT / "compose.yaml"]),
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
    ],
)
def test_file_is_valid_by_the_schema_of_its_program(schema: str, paths: list[Path]) -> None:
    check = (Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", f"vendor.{schema}")
    checked = subprocess.run([*check, *paths], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_addition_to_compose_is_valid_and_names_what_compose_yaml_has(tmp_path: Path) -> None:
    path = tmp_path / "compose.override.yaml"
    path.write_text(files_of("docker-compose")[path.name])
    test_file_is_valid_by_the_schema_of_its_program("compose-spec", [path])
    base, added = (yaml.safe_load(file.read_text()) for file in (ROOT / "compose.yaml", path))
    services = base["services"] | added["services"]
    for service in added["services"].values():
        assert service["depends_on"].keys() <= services.keys()
        assert {config["source"] for config in service["configs"]} <= base["configs"].keys()


def test_units_of_systemd_are_valid(tmp_path: Path) -> None:
    systemd_analyze = shutil.which("systemd-analyze")
    if systemd_analyze is None:
        pytest.skip("there is no systemd-analyze: install Debian's package systemd")
    units = files_of("systemd")
    for name, code in units.items():
        (tmp_path / name).write_text(code.replace("/opt/chat/.venv/bin/hubbub", "/bin/true"))
    checked = subprocess.run(
        [systemd_analyze, "verify", "--man=no", *units], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
