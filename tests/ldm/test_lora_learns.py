"""A LoRA teaches a network a word that it has never seen, and the network keeps those that it has."""

import functools

import pytest
import torch
from small_networks import make_dit

from ldm.diffusion.objective import add_noise, target
from ldm.diffusion.settings import ObjectiveSettings
from ldm.diffusion.timesteps import alpha_sigma
from ldm.networks.conditioning import Condition
from ldm.networks.lora import LORA_WEIGHTS, add_lora, merge_lora, save_lora
from ldm.networks.network import predict
from ldm.networks.settings import LoRASettings
from ldm.training.diffusion_batches import Batch, per_sample_mse

pytest.importorskip("peft")
SHAPE = (4, 3, 4, 4)
KNOWN, NEW = (0, 1, 2), 3
FLOW = ObjectiveSettings()


class Words:
    """Four words: each has an embedding, and latents that vary around a pattern of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.embeddings = torch.randn(4, 2, 8, generator=self.generator)  # (words, tokens, d)
        self.patterns = torch.randn(4, *SHAPE, generator=self.generator).sign()

    def condition(self, words):
        return Condition(self.embeddings[words], torch.ones(len(words), 2, dtype=torch.bool))

    def batch(self, words):
        """A training batch of clips of these words, as of rectified flow."""
        eps = torch.randn(len(words), *SHAPE, generator=self.generator)
        x = self.patterns[words] + 0.3 * torch.randn(eps.shape, generator=self.generator)
        time = torch.rand(len(words), generator=self.generator)
        alpha, sigma = alpha_sigma(time, FLOW)
        answer = target(x, eps, alpha, sigma, "flow")
        return Batch(add_noise(x, eps, alpha, sigma), answer, time, torch.ones(len(words)), self.condition(words), x)

    def train(self, network, words, steps, learning_rate):
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, learning_rate)
        for _ in range(steps):
            chosen = torch.tensor(words)[torch.randint(len(words), (16,), generator=self.generator)]
            per_sample_mse(functools.partial(predict, network), self.batch(chosen)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def accuracy(self, network, word, count=32, steps=10):
        """Share of sampled latents that are nearest to the word's pattern."""
        x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(word))
        condition = self.condition(torch.full((count,), word))
        for step in range(steps):
            time = torch.full((count,), 1 - step / steps)
            x = x - predict(network, x, time, condition) / steps
        distances = (x[:, None] - self.patterns).square().flatten(2).mean(-1)  # (count, words)
        return float((distances.argmin(1) == word).float().mean())


@pytest.mark.slow
def test_a_lora_teaches_a_new_word_and_keeps_the_others(tmp_path):
    words, network = Words(), make_dit(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    words.train(network, KNOWN, 250, 3e-3)
    base = [words.accuracy(network, word) for word in range(4)]
    assert min(base[:NEW]) >= 0.9
    assert base[NEW] <= 0.1
    before = {name: value.clone() for name, value in network.state_dict().items()}
    add_lora(network, LoRASettings(rank=8))
    words.train(network, (*KNOWN, NEW, NEW, NEW), 250, 3e-3)
    save_lora(network, dict(network.named_parameters()), tmp_path)
    tuned = make_dit(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    tuned.load_state_dict(before)
    merge_lora(tuned, tmp_path / LORA_WEIGHTS)
    after = [words.accuracy(tuned, word) for word in range(4)]
    print(base, after)
    assert after[NEW] >= 0.9
    assert min(b - a for b, a in zip(after[:NEW], base[:NEW], strict=True)) >= -0.03
