"""Threads that share the tensors of a module."""

import threading
import time
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import nn

from pipeline.side_by_side import SideBySide, on_all_threads, one_thread, twins


def test_twins_share_tensors_and_nothing_else():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    one, two = twins(module, 2)
    assert one is not two and one[0] is not two[0] and one[0] is not module[0]
    for twin in (one, two):
        pairs = zip(twin.state_dict(keep_vars=True).items(), module.state_dict(keep_vars=True).items(), strict=True)
        assert all(name == of and mine is own for (name, mine), (of, own) in pairs)


def test_shares_are_worked_on_by_threads_of_their_own_and_come_in_order():
    together = threading.Barrier(2, timeout=20)

    def work(twin: nn.Module, share: Iterator[int]) -> tuple[list[int], int, int]:
        together.wait()
        return list(share), id(twin), torch.get_num_threads()

    before = torch.get_num_threads()
    (first, one, alone), (second, two, _) = SideBySide(nn.Linear(1, 1), 2).each(work, range(5))
    assert (first, second) == ([0, 2, 4], [1, 3]) and one != two and alone == 1
    assert torch.get_num_threads() == before
    assert SideBySide(nn.Linear(1, 1), 3).each(lambda twin, share: list(share), [7]) == [[7]]


@pytest.mark.parametrize("error", [ValueError("not this one"), KeyboardInterrupt()])
def test_an_error_of_one_thread_ends_the_others_at_their_next_item(error):
    seen, failed = [], threading.Event()

    def work(_: nn.Module, share: Iterator[int]) -> None:
        for item in share:
            if item == 1:
                failed.set()
                raise error
            assert failed.wait(20)
            time.sleep(0.1)
            seen.append(item)

    before = torch.get_num_threads()
    with pytest.raises(type(error)):
        SideBySide(nn.Linear(1, 1), 2).each(work, range(1000))
    assert len(seen) < 10 and torch.get_num_threads() == before


@pytest.mark.parametrize("held", [threading.Lock(), torch.ones(1, requires_grad=True) * 2])
def test_what_cannot_be_copied_is_worked_on_by_one_thread(threads, held):
    threads(2)
    module = nn.Linear(1, 1)
    module.held = held
    assert on_all_threads(module, lambda own, share: [own is module for _ in share], range(3)) == [True] * 3


def test_one_thread_is_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count,items,modules", [(1, 5, 1), (3, 5, 3), (3, 2, 2), (3, 0, 1)])
def test_all_threads_of_the_process_are_used_with_one_torch_thread_each(threads, count, items, modules):
    threads(count)
    used, counts = set(), set()

    def work(module: nn.Module, share: Iterable[int]) -> list[int]:
        used.add(module)
        counts.add(torch.get_num_threads())
        return [item + int(module.weight.item()) for item in share]

    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 10)
    assert sorted(on_all_threads(module, work, range(items))) == [10 + item for item in range(items)]
    assert len(used) == modules and counts == {1} and torch.get_num_threads() == count
