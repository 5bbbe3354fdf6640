"""The compiled kernels: when they are there, where they lie, and the one that the decoder's tests do not see whole."""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from memrl.policy import kernels
from memrl.policy.kernels import load_kernels


def load_anew(dtype):
    """Past the cache of this process."""
    return load_kernels.__wrapped__(dtype)


def test_the_compiled_file_is_made_once_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_anew(torch.float32) is not None
    (first,) = (tmp_path / "memrl").iterdir()
    made = first.stat().st_mtime_ns
    assert load_anew(torch.float32) is not None
    assert [(path, path.stat().st_mtime_ns) for path in (tmp_path / "memrl").iterdir()] == [(first, made)]
    assert load_anew(torch.float64) is not None
    assert len(list((tmp_path / "memrl").iterdir())) == 2


def test_without_a_compiler_there_are_none_and_a_warning_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_anew(torch.float32) is None
    assert "no C compiler works here" in caplog.text


@pytest.fixture
def places(monkeypatch, tmp_path):
    """The two places where compiled files may lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache" / "memrl", tmp_path / "temporary" / f"memrl-{os.getuid()}"


@pytest.fixture(scope="module")
def compiled_name(tmp_path_factory):
    """What the compiled file is called on this machine."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert load_anew(torch.float32) is not None
    (path,) = (folder / "memrl").iterdir()
    return path.name


@pytest.fixture
def planted(places, compiled_name):
    """A file in the place of the compiled one."""
    path = places[0] / compiled_name
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_bytes(b"not a library: to load it would fail")
    return path


@pytest.mark.parametrize("mode", [0o770, 0o1777])
def test_no_library_is_loaded_from_a_folder_that_others_can_write(places, planted, mode):
    cache, temporary = places
    cache.chmod(mode)
    assert load_anew(torch.float32) is not None
    assert [path.name for path in temporary.iterdir()] == [planted.name]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given_away", ["folder", "file"])
def test_no_library_is_loaded_that_is_another_users(places, planted, given_away):
    cache, temporary = places
    os.chown(cache if given_away == "folder" else planted, 65534, 65534)
    assert load_anew(torch.float32) is not None
    (compiled,) = temporary.iterdir() if given_away == "folder" else cache.iterdir()
    assert compiled.stat().st_uid == os.getuid()


def test_where_no_place_is_safe_there_are_none_and_one_line_says_so(places, caplog):
    for place in places:
        place.mkdir(parents=True)
        place.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert load_anew(torch.float32) is None
    (record,) = caplog.records
    assert all(str(place) in record.getMessage() for place in places)


def test_a_place_that_may_hold_no_programs_is_passed_over(places, monkeypatch):
    # Without the right to mount a disk so, the system's answer stands in for one.
    cache, temporary = places
    plain = os.statvfs

    def mounted(path):
        status = plain(path)
        flags = status.f_flag | os.ST_NOEXEC if Path(path) == cache else status.f_flag
        return SimpleNamespace(f_flag=flags)

    monkeypatch.setattr(os, "statvfs", mounted)
    assert load_anew(torch.float32) is not None
    assert list(cache.iterdir()) == []
    assert len(list(temporary.iterdir())) == 1


def test_a_compiler_that_knows_fewer_flags_is_enough(monkeypatch, tmp_path):
    plain = tmp_path / "cc"
    plain.write_text('#!/bin/sh\ncase "$*" in *native*|*openmp*) exit 1;; esac\nexec gcc "$@"\n')
    plain.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(plain))
    library = load_anew(torch.float64)
    gate_up, gated = torch.randn(3, 14, dtype=torch.float64), torch.empty(3, 7, dtype=torch.float64)
    library.gate(3, 7, gate_up, gated)
    torch.testing.assert_close(gated, torch.nn.functional.silu(gate_up[:, :7]) * gate_up[:, 7:])


def test_a_change_of_either_source_is_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copies = [Path(shutil.copy(source, tmp_path)) for source in kernels.SOURCES]
    assert {copy.name for copy in copies} == {"kernels.c", "products.h"}
    monkeypatch.setattr(kernels, "SOURCES", copies)
    for copy in copies:
        assert load_anew(torch.float64) is not None
        copy.write_text(copy.read_text() + "/* another */\n")
    assert load_anew(torch.float64) is not None
    assert len(list((tmp_path / "cache" / "memrl").iterdir())) == 3


def test_other_dtypes_have_no_kernels():
    assert load_kernels(torch.bfloat16) is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)])
def test_the_gate_is_exact_from_the_smallest_to_the_largest_numbers(dtype, tolerance):
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -1e4, 1e4, 1e-30, -1e-30])])
    exact = x.double()
    gate_up = torch.stack([x.to(dtype), torch.full_like(x, 3.0, dtype=dtype)]).reshape(1, -1).contiguous()
    gated, grad = torch.empty(1, len(x), dtype=dtype), torch.full((1, len(x)), 2.0, dtype=dtype)
    library = load_kernels(dtype)
    library.gate(1, len(x), gate_up, gated)
    silu = torch.nn.functional.silu(exact)
    # Far below zero the exact number is smaller than float32 can tell from zero beside x itself.
    torch.testing.assert_close(gated[0].double(), 3.0 * silu, rtol=tolerance, atol=1e-33)
    library.gate_backward(1, len(x), grad, gate_up)
    sigmoid = torch.sigmoid(exact)
    slope = sigmoid * (1 + exact * (1 - sigmoid))
    torch.testing.assert_close(gate_up[0, : len(x)].double(), 6.0 * slope, rtol=10 * tolerance, atol=tolerance)
    torch.testing.assert_close(gate_up[0, len(x) :].double(), 2.0 * silu, rtol=tolerance, atol=1e-33)
