"""Rates of a training: model FLOPs and MFU against the published peak and the measured rate, for VAE and LDM alike."""

import time

import pytest
import torch
from small import SMALL
from small_vae import DATA, vae_settings

from odvae import ODVAE
from odvae.clips.video_set import VideoSet
from odvae.measuring import count_flops, peaks_of
from odvae.running.files import read_json_lines
from odvae.train import train_vae
from odvae.training.devices import known_device, load_devices
from odvae.training.throughput import Peaks, StepMeter
from odvae.training_step import ReconstructionCost
from odvae.vae_batches import Batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_rates_are_those_of_the_steps_since_the_last_row():
    meter = StepMeter("frames", lambda batch: (batch * 10**9, batch), ranks=2, peaks=Peaks(4e12, 2e12))
    meter.count(100)
    assert meter.row()["frames_per_second"] > 0
    start = time.perf_counter()
    with meter.waiting_for_data():
        time.sleep(0.02)
    meter.count(3)
    meter.count(4)
    row, seconds = meter.row(), time.perf_counter() - start
    assert row["frames_per_second"] >= 2 * 7 / seconds
    assert row["model_tflops"] == pytest.approx(row["frames_per_second"] / 2 / 1000)
    assert row["mfu"] == pytest.approx(row["model_tflops"] / 4)
    assert row["mfu_of_matmul_rate"] == pytest.approx(row["model_tflops"] / 2)
    assert 0 < row["data_wait_share"] <= 1
    with meter.paused():
        time.sleep(0.05)
    meter.count(1)
    assert meter.row()["frames_per_second"] > 2 / 0.05  # the pause is not time of the step
    assert "mfu" not in StepMeter("frames", lambda _: (1, 1), 1, Peaks(None, 1e9)).row()


def test_the_published_peak_is_the_given_one_or_the_tables_in_bf16(monkeypatch):
    monkeypatch.setattr("odvae.measuring.matmul_rate", lambda device, dtype: 1.0 if dtype == torch.float32 else 2.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    assert peaks_of(CUDA, bf16=True) == Peaks(756e12, 2.0)
    assert peaks_of(CUDA, bf16=False) == Peaks(None, 1.0)
    assert peaks_of(CUDA, bf16=False, published_tflops=3.0) == Peaks(3e12, 1.0)
    assert peaks_of(CPU, bf16=True) == Peaks(None, 2.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 NVL")  # another card
    assert known_device(CUDA) is None


def test_every_name_of_a_driver_is_of_one_device():
    names = [name for device in load_devices().values() for name in device.names]
    assert len(names) == len({*names}) >= len(load_devices())


def test_the_vaes_flops_are_those_of_three_reconstructions():
    vae = ODVAE(**SMALL)
    video = torch.zeros(2, 3, 9, 32, 32)
    batch = Batch(video, "posterior", [0, 1])
    with torch.no_grad():
        once = count_flops(lambda: vae.reconstruct(video, torch.zeros(2, *batch.latent_shape(vae))))
    cost = ReconstructionCost(vae)
    assert cost(batch) == cost(batch) == (3 * once, 18)


def test_a_training_of_the_vae_logs_its_speed(ldm_run, tmp_path):
    settings = vae_settings(steps=2).model_copy(update={"peak_tflops": 2.0})
    train_vae(settings, DATA, VideoSet(ldm_run / "shards", DATA, "?"), tmp_path / "vae", 0)
    logged = [row for row in read_json_lines(tmp_path / "vae/metrics.jsonl") if "loss" in row]
    assert len(logged) == 2
    for row in logged:
        assert row["frames_per_second"] > 0
        assert row["mfu"] == pytest.approx(row["model_tflops"] / 2.0)
        assert row["mfu_of_matmul_rate"] > 0
        assert 0 <= row["data_wait_share"] < 1
