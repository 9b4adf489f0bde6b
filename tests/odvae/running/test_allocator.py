"""glibc keeps freed memory for the next tensors."""

import multiprocessing
import resource

import pytest
import torch

from odvae.running.allocator import keep_freed_memory


def page_faults_of_large_tensors(keep: bool, results) -> None:
    kept = keep and keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(60):
        torch.ones(10 * 2**20)  # 40 MiB: more than glibc keeps of its own accord
    results.put((kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))


def test_freed_memory_is_used_again_without_new_pages():
    context, found = multiprocessing.get_context("spawn"), {}
    for keep in (False, True):
        results = context.SimpleQueue()
        process = context.Process(target=page_faults_of_large_tensors, args=(keep, results))
        process.start()
        process.join()
        kept, found[keep] = results.get()
        if keep and not kept:
            pytest.skip("the C library is not glibc")
    assert found[True] < found[False] / 5
