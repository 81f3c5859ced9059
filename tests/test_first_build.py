"""The first build compiles nothing twice: the two that make it up agree on the features of what they share."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SIDECAR = Path(__file__).resolve().parent.parent / "sidecar"
PACKAGE = re.compile(r"(\S+ v\S+)(?: \(.*?\))* \[(.*)\]")


def features(*packages: str) -> dict[str, set[str]]:
    """Return the packages that a build of these has, and their features."""
    chosen = [part for package in packages for part in ("-p", package)]
    command = ["cargo", "tree", "--locked", "--edges", "normal,build", "--format", "{p} [{f}]", "--prefix", "none"]
    listed = subprocess.run([*command, *chosen], cwd=SIDECAR, capture_output=True, text=True, check=True).stdout
    found: dict[str, set[str]] = {}
    for line in filter(None, listed.replace(" (*)", "").splitlines()):
        parts = PACKAGE.fullmatch(line)
        assert parts is not None, line
        found.setdefault(parts[1], set()).update(filter(None, parts[2].split(",")))
    return found


def test_shared_libraries_have_the_same_features_in_both_builds():
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not here")
    services, native = features("uho-sidecar", "archive-sim"), features("uho-native")
    # old-faithful itself is small, and the Python module needs no fetching.
    shared = {package for package in services.keys() & native.keys() if not package.startswith("old-faithful ")}
    assert len(shared) > 50
    differ = {package: services[package] ^ native[package] for package in shared}
    missing = {package: names for package, names in differ.items() if names}
    assert not missing, "name these features in sidecar/crates/workspace-hack/Cargo.toml"
