"""DDP's settings on two ranks: they reach torch, and train the same weights as one rank."""

import json

import torch
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel

from odvae.training.optimization import gradients_synced_at, make_accelerator
from odvae.training.settings import DDPSettings

CHOSEN = DDPSettings(gradient_as_bucket_view=False, bucket_cap_mb=3, find_unused_parameters=True)


class Partly(torch.nn.Module):
    """A network one of whose layers is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def samples():
    return torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1))  # step and micro-step, rank or row, width


def expected():
    """The weights after two steps of two micro-steps on one process, without DDP."""
    layer = Partly().used
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for step in samples().split(2):
        for rows in step:
            (layer(rows[:2]).square().mean(1).sum() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer.weight.detach()


def train(rank, folder, name, module, settings):
    accelerator = make_accelerator("fp32", "none", folder, "test", ddp=settings)
    model, optimizer = accelerator.prepare(module, torch.optim.SGD(module.parameters(), 0.1))
    assert isinstance(model, DistributedDataParallel)
    error, shared = None, False
    try:
        for step in samples().split(2):
            for micro_step, rows in enumerate(step):
                with gradients_synced_at(accelerator, model, micro_step == 1):
                    accelerator.backward(model(rows[rank : rank + 1]).square().mean(1).sum() / 2)
            shared = any(p.grad is not None and p.grad._is_view() for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
    except RuntimeError as found:
        error = str(found)
    layer = getattr(module, "used", module)
    facts = {
        "bucket_bytes": model.bucket_bytes_cap,
        "finds_unused": model.find_unused_parameters,
        "in_buckets": shared,
        "weight": layer.weight.tolist(),
        "error": error,
    }
    (folder / f"{name}_{rank}.json").write_text(json.dumps(facts))


def test_settings_reach_ddp_and_two_ranks_train_as_one(tmp_path):
    def work(rank):
        train(rank, tmp_path, "default", Partly().used, None)
        train(rank, tmp_path, "chosen", Partly(), CHOSEN)
        train(rank, tmp_path, "unused", Partly(), DDPSettings())

    ends = on_ranks(2, tmp_path, work)
    assert [status for status, _ in ends] == [0, 0], ends
    for rank in (0, 1):
        read = lambda name, rank=rank: json.loads((tmp_path / f"{name}_{rank}.json").read_text())  # noqa: E731
        default, chosen = read("default"), read("chosen")
        assert (default["in_buckets"], default["bucket_bytes"], default["finds_unused"]) == (True, 25 * 2**20, False)
        assert (chosen["in_buckets"], chosen["bucket_bytes"], chosen["finds_unused"]) == (False, 3 * 2**20, True)
        for found in (default, chosen):
            assert found["error"] is None
            assert torch.allclose(torch.tensor(found["weight"]), expected(), atol=1e-6)
        assert "find_unused_parameters=True" in read("unused")["error"]
