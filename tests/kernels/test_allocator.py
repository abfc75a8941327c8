from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fpe_hf.kernels import allocator
from fpe_hf.kernels.allocator import borrow, release


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    release()
    monkeypatch.setattr(allocator, "LARGE", 3000)
    yield
    release()


def test_memory_is_used_again() -> None:
    first = borrow(1000)
    where = first.data_ptr()
    second = borrow(1000)
    assert second.data_ptr() != where
    del first
    assert borrow(900).data_ptr() == where
    assert borrow(1000).data_ptr() == where
    assert second.data_ptr() != where


def test_it_is_used_again_only_when_nothing_holds_it() -> None:
    first = borrow(1000)
    first.fill_(1)
    part, where = first[10:20].view(2, 5), first.data_ptr()
    del first
    assert not allocator._idle
    other = borrow(1000)
    assert other.data_ptr() != where
    other.zero_()
    assert bool((part == 1).all())
    del part
    assert borrow(1000).data_ptr() == where


def test_much_larger_pieces_are_left_alone() -> None:
    where = borrow(4000).data_ptr()
    assert borrow(1000).data_ptr() != where
    assert borrow(2000).data_ptr() == where
    assert len(allocator._idle) == 2


def test_release() -> None:
    held = borrow(1000)
    held.fill_(3)
    del held
    kept = borrow(2000)
    kept.fill_(2)
    assert len(allocator._idle) == 1
    release()
    assert not allocator._idle
    assert bool((kept == 2).all())


def test_little_memory_is_left_to_torch() -> None:
    small = borrow(10)
    assert small.shape == (10,)
    assert small.dtype == torch.float32
    del small
    assert not allocator._idle


def test_copies_and_threads() -> None:
    def use(number: int) -> bool:
        own = borrow(5000).fill_(number)
        other = copy.deepcopy(own).mul_(2)
        return bool((own == number).all()) and bool((other == 2 * number).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(200)))
    assert 1 <= len(allocator._idle) <= 8
