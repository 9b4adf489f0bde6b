"""Compiled blocks: one graph for each of a training's shapes, no breaks; what breaks or is compiled again is named."""

from dataclasses import replace

import pytest
import torch

from ldm.experiment import CONFIGS, Experiment
from ldm.planning.compilation import Call, CompiledTraining, compiled_trainings, count_graphs
from ldm.planning.host_syncs import RehearsalError
from odvae.running.settings import load_settings
from odvae.training.compilation import compile_blocks

BUCKETS = "encode.buckets=[{frames: 9, height: 32, width: 32}, {frames: 5, height: 48, width: 48}]"


@pytest.mark.parametrize("backend", ["sdpa", "flash"])
def test_every_bucket_is_compiled_once_for_training_and_once_for_validation(backend):
    options = ["ldm.optimization.compile=true", "ldm.dit.depth=1", BUCKETS, f"ldm.attention_backend={backend}"]
    (training,) = compiled_trainings(load_settings(Experiment, CONFIGS / "smallest.yaml", options))
    assert len(training.calls) == 8  # two buckets: steps, validation, sampling with and without guidance
    calls = [call for call in training.calls if call.name.startswith(("a step", "validation"))]
    assert count_graphs(replace(training, calls=calls)) == 4


class Block(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def training_of(function, *sizes):
    def prepare():
        block = Block(function)
        compile_blocks([block])
        return block

    calls = [Call(f"size {n}", True, lambda _, n=n: (torch.zeros(n),)) for n in sizes]
    return CompiledTraining("a training", prepare, calls)


def leaves_the_graph(x):
    torch._dynamo.graph_break()
    return x + 1


def counts_its_calls(x):
    counts_its_calls.number += 1
    return x + counts_its_calls.number


def test_each_size_is_one_graph_also_beyond_torchs_limit_and_known_ones_are_found_again():
    assert count_graphs(training_of(torch.sin, *range(2, 14), 3)) == 12


@pytest.mark.parametrize(
    ("function", "message"),
    [(leaves_the_graph, "graph breaks:\n  .*graph_break"), (counts_its_calls, "size 3 is compiled again")],
)
def test_breaks_and_recompilations_are_errors(function, message):
    counts_its_calls.number = 0
    with pytest.raises(RehearsalError, match=message):
        count_graphs(training_of(function, 3))
