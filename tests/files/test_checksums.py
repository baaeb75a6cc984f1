"""Checksums that sha256sum writes and checks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from files.checksums import HashingFile, read_checksums, sha256_of, write_checksums


def test_sha256sum_checks_what_is_written(tmp_path: Path):
    with (tmp_path / "a b.bin").open("wb") as raw:
        file = HashingFile(raw)
        file.write(b"one")
        file.write(b"two")
    assert file.sha256 == sha256_of(tmp_path / "a b.bin")
    write_checksums(tmp_path / "SHA256SUMS", {"a b.bin": file.sha256})
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)
    written = subprocess.run(["sha256sum", "a b.bin"], cwd=tmp_path, check=True, capture_output=True).stdout
    (tmp_path / "theirs").write_bytes(written)
    assert read_checksums(tmp_path / "theirs") == {"a b.bin": file.sha256}


def test_another_file_is_refused(tmp_path: Path):
    (tmp_path / "x").write_text("hello\n", encoding="utf-8")
    with pytest.raises(ValueError, match="x, line 1: not a checksum"):
        read_checksums(tmp_path / "x")
