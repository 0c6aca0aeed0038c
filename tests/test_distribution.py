# SPDX-License-Identifier: Apache-2.0
"""tools/distribution.py, as far as it needs no root; `.ci/run` runs it whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
import distribution  # noqa: E402

sys.path.remove(str(TOOLS))


def test_the_mirror_is_the_archive_of_debian_not_of_its_security_updates() -> None:
    targets = """\
|| http://unread.example/debian
Node Source|.|https://node.example/nodistro
Debian|Debian-Security|http://mirror.example/debian-security/
Debian|Debian|http://mirror.example/debian/
Debian|Debian|http://other.example/debian/
"""
    assert distribution.debian_archive(targets) == "http://mirror.example/debian/"
    assert distribution.debian_archive("Ubuntu|Ubuntu|http://mirror.example/ubuntu/\n\n") is None


def test_places_that_pip_reads_are_found_in_its_settings(tmp_path: Path) -> None:
    for folder in ("wheels", "index/simple", "other/simple"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "constraints.txt").touch()
    said = (
        f":env:.find-links='{tmp_path}/wheels'\n"
        f"global.cert='{tmp_path}/missing.crt'\n"
        f"global.constraint='{tmp_path}/constraints.txt'\n"
        f"global.extra-index-url='\\nfile://{tmp_path}/index/simple\\nfile://{tmp_path}/other/simple'\n"
        "global.index-url='https://pypi.example/simple'\n"
        "global.target='/'\n"
    )
    names = {"wheels", "constraints.txt", "index", "other"}
    assert set(distribution.local_places(said)) == {tmp_path / name for name in names}


def test_what_lies_inside_another_shared_folder_is_not_shared_twice(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "bundle.crt").touch()
    paths = [tmp_path / "certs" / "bundle.crt", tmp_path / "certs", tmp_path / "none"]
    assert distribution.outermost(paths) == [tmp_path / "certs"]


def test_the_root_sees_the_ways_to_the_network_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"PIP_CERT": "/c", "https_proxy": "p", "NO_PROXY": "n", "SSL_CERT_FILE": "/c", "REQUESTS_CA_BUNDLE": "/c"}
    for name, value in {**taken, "SPARCL_NO_APT": "1", "SECRET_TOKEN": "x", "MY_PIP_X": "y"}.items():
        monkeypatch.setenv(name, value)
    found = distribution.environment()
    assert taken.items() <= found.items()
    assert not {"SPARCL_NO_APT", "SECRET_TOKEN", "MY_PIP_X"} & set(found)


def test_every_board_that_runs_without_hardware_is_tried() -> None:
    assert distribution.boards() == ["ast1030_evb", "emcraft_sf2", "microbit", "mps3_an547", "native"]


def test_without_root_rights_it_says_so_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["distribution.py"])
    assert distribution.main() == distribution.CANNOT
    assert "SKIPPED, no root of trixie can be made here: it needs root rights" in capsys.readouterr().out


def test_a_machine_without_debootstrap_and_without_leave_to_install_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(distribution, "PATH", str(tmp_path))
    monkeypatch.setenv("SPARCL_NO_APT", "1")
    with pytest.raises(distribution.CannotError, match="debootstrap is not installed"):
        distribution.need_debootstrap()
