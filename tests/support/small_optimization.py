"""A small network with all kinds of parameters, optimizer steps on it, and steps on its shards in processes."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from odvae.training.muon import Muon


class Network(nn.Module):
    """Matrices that are wide, tall and square, some of one shape; kernels; biases, gains and what is no matrix."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 8, (3, 3, 3))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.layers = nn.ModuleList([nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 24), nn.Linear(24, 24)])
        self.gain, self.position = nn.Parameter(torch.ones(24)), nn.Parameter(torch.zeros(1, 5, 8))
        self.narrow = nn.Linear(24, 2)


def train(network, optimizer, steps, first=1):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def step_on_shards(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = Network()
    fully_shard(network, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    optimizer = Muon(network.parameters(), 1e-2, 0.1, adaptive=True, nesterov=True)
    for step in range(1, 4):
        generator = torch.Generator().manual_seed(step)
        for p in network.parameters():
            whole = torch.randn(p.shape, generator=generator)
            p.grad = torch.distributed.tensor.distribute_tensor(whole, p.device_mesh, p.placements)
        optimizer.step()
    weights = {name: p.full_tensor() for name, p in network.named_parameters()}
    if rank == 0:
        torch.save(weights, f"{folder}/weights.pt")
    torch.distributed.destroy_process_group()
