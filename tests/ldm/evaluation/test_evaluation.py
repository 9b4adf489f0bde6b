"""The evaluation's parts: protocols, feature networks, the cache of references, flicker, the table of numbers."""

import csv
import io
import json
import types

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from ldm.demo.judge import Verdict
from ldm.evaluate import (
    EvalLDMSettings,
    accuracy_parts,
    announce_warnings,
    choose_video_sets,
    duplicates_part,
    read_samples,
)
from ldm.evaluation.clip_score import CLIPScorer
from ldm.evaluation.features import extract_features, load_network, to_square
from ldm.evaluation.i3d import I3D, load_i3d
from ldm.evaluation.protocols import PROTOCOLS
from ldm.evaluation.reference_cache import cached_features, describe_clips, given_features
from ldm.evaluation.scorers import SampleFiles
from ldm.evaluation.scores import distance_part
from ldm.report.flat_table import flatten, to_csv
from ldm.report.page import short_number
from odvae.clips.settings import DataSettings
from odvae.flicker import added_flicker, seam_ratio, steadiness
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint
from odvae.shards.tars import Sample
from odvae.video.files import write_video

rng = np.random.default_rng(0)
DATA = DataSettings(frames=17, height=16, width=16)


# Protocols


def test_a_protocol_takes_its_frames_from_the_front_of_generated_and_from_anywhere_in_real_videos():
    clips = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1, 1).repeat(3, axis=-1)
    assert PROTOCOLS["clip"].select(clips)[0, :, 0, 0, 0].tolist() == list(range(17))
    assert PROTOCOLS["stylegan-v-16f"].select(clips)[0, :, 0, 0, 0].tolist() == list(range(16))
    starts = [PROTOCOLS["stylegan-v-16f"].random_start(40, DATA, 0, number) for number in range(200)]
    assert (min(starts), max(starts)) == (0, 23)  # the last clip ends with the video
    assert starts == [PROTOCOLS["stylegan-v-16f"].random_start(40, DATA, 0, number) for number in range(200)]


def test_strided_protocols_need_and_take_long_clips():
    with pytest.raises(InputError, match=r"need clips of 121; the experiment's have data\.frames=17"):
        PROTOCOLS["stylegan-v-128f-8"].check(17)
    clips = np.arange(129, dtype=np.uint8).reshape(1, 129, 1, 1, 1)
    assert PROTOCOLS["stylegan-v-128f-8"].select(clips)[0, :, 0, 0, 0].tolist() == list(range(0, 128, 8))


# Feature networks


def test_random_features_tell_still_from_moving_and_do_not_depend_on_the_batch():
    still = np.repeat(rng.integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8), 8, axis=1)
    moving = np.stack([np.roll(still[:, 0], 2 * i, axis=2) for i in range(8)], axis=1)
    network = load_network("random")
    features = extract_features(network, np.concatenate([still, moving, still]), batch_size=2)
    assert features.shape == (3, network.dimension)
    assert np.allclose(features[0], features[2], atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.05
    assert "not FVD" in network.distance


def test_squash_keeps_the_whole_frame_and_crop_the_aspect():
    video = torch.zeros(1, 3, 2, 20, 40)
    video[..., :10] = 1  # the left quarter is white
    squashed, cropped = (to_square(video, 8, False, resize) for resize in ("squash", "crop"))
    assert squashed.shape == cropped.shape == (1, 3, 2, 8, 8)
    assert squashed[0, 0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert cropped[0, 0, 0, 0].abs().max() < 1e-6  # the middle half has none of it


def test_i3d_loads_from_a_state_dict_and_refuses_another_hash_and_other_tensors(tmp_path):
    torch.manual_seed(0)
    network = I3D().eval()
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    loaded, sha256 = load_i3d(tmp_path / "i3d.pt", None)
    assert sha256 == file_fingerprint(tmp_path / "i3d.pt")
    assert torch.equal(loaded.logits.conv3d.weight, network.logits.conv3d.weight)
    with pytest.raises(InputError, match="not the I3D expected: its sha256 is"):
        load_i3d(tmp_path / "i3d.pt", "0" * 64)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="does not hold I3D's 344 tensors"):
        load_i3d(tmp_path / "other.pt", None)
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read as a state dict"):
        load_i3d(tmp_path / "broken.pt", None)
    with pytest.raises(InputError, match="no such file"):
        load_i3d(tmp_path / "none.pt", None)


class Scripted(nn.Module):
    """A program with the call of StyleGAN-V's file."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale
        assert not resize
        return self.gain * x.mean(dim=[2, 3, 4]).repeat(1, 134)[:, :400]


def test_a_torchscript_program_runs_only_with_the_known_hash_or_the_one_given(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Scripted()).save(str(path))
    with pytest.raises(InputError, match=r"set eval_ldm\.i3d_sha256"):
        load_i3d(path, None)
    network = load_network("i3d", str(path), file_fingerprint(path))
    assert network.distance == "FVD"
    with pytest.raises(InputError, match="takes 10 or more frames, the protocol gives 9"):
        network.check_frames(9)
    features = extract_features(network, rng.integers(0, 256, (2, 10, 16, 16, 3), dtype=np.uint8))
    assert features.shape == (2, 400)


def test_videomae_features_are_its_pooled_tokens_and_need_its_frames(tmp_path):
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    network = load_network("videomae", videomae=str(tmp_path))
    videos = rng.integers(0, 256, (3, 4, 24, 24, 3), dtype=np.uint8)
    features = extract_features(network, videos, batch_size=2)
    assert features.shape == (3, 16)
    assert np.allclose(features[:1], extract_features(network, videos[:1]), atol=1e-5)
    assert not np.allclose(features[:1], extract_features(network, videos[:1, ::-1].copy()), atol=1e-3)  # order counts
    assert "not FVD" in network.distance
    with pytest.raises(InputError, match="takes 4 frames, the protocol gives 17"):
        network.check_frames(17)
    with pytest.raises(InputError, match=r"eval_ldm\.videomae must name"):
        load_network("videomae")


def test_features_of_another_layout_are_refused():
    with pytest.raises(InputError, match="expected uint8 videos"):
        extract_features(load_network("random"), np.zeros((2, 4, 8, 8, 3), np.float32))


def test_clip_score_is_the_mean_cosine_of_prompt_and_frames(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=small | ids, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(tmp_path)
    scorer = CLIPScorer(str(tmp_path), torch.device("cpu"))
    video = rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    frames = [scorer.score(video[i : i + 1], "a b") for i in range(3)]
    assert scorer.score(video, "a b") == pytest.approx(np.mean(frames), abs=1e-5)
    assert scorer.score(video, "b") != pytest.approx(np.mean(frames), abs=1e-4)
    with pytest.raises(InputError, match="cannot be loaded"):
        CLIPScorer(str(tmp_path / "none"), torch.device("cpu"))


# Scores


def test_a_distance_stands_beside_both_floors_and_says_when_there_are_too_few_videos():
    network = load_network("random")
    reference = rng.normal(size=(20, 64))
    sets = {"generated": reference + 1, "reconstructed": reference + 0.1, "real": rng.normal(size=(20, 64))}
    part = distance_part(network, reference, sets, {"ddof": 1}, bootstrap=10, seed=0)
    assert part["generated"]["frechet"] == pytest.approx(64, rel=1e-3)
    assert part["reconstructed"]["frechet"] == pytest.approx(0.64, rel=1e-3)
    assert "20 videos are not more than the 64 features" in part["warnings"][0]
    assert part["n"] == part["real"]["n"] == 20
    many = {name: np.tile(features, (4, 1)) for name, features in sets.items()}
    assert not distance_part(network, np.tile(reference, (4, 1)), many, {"ddof": 1}, 0, 0)["warnings"]


def test_equal_samples_are_counted_named_and_warned_of(capsys):
    rows = [{"file": f"{i}.mp4", "digest": digest} for i, digest in enumerate("abca")]
    part = duplicates_part(rows)
    assert (part["n"], part["different"], part["repeated"]) == (4, 3, ["0.mp4", "3.mp4"])
    announce_warnings({"distances": {}, "duplicates": part})
    assert "warning: 2 samples are not the only ones of their pixels: 0.mp4, 3.mp4" in capsys.readouterr().out


def sample(key):
    return Sample(key, None, {"mp4": (0, 100), "json": (0, 0)})


def test_sets_have_equal_size_and_too_few_videos_are_refused():
    videos = types.SimpleNamespace(held_out=[sample("a"), sample("b"), sample("c")], train=[sample("d"), sample("e")])
    rows = [{"group": "held_out", "file": f"{i}"} for i in range(5)]
    sets = choose_video_sets(EvalLDMSettings(), DATA, videos, rows, 0)
    assert len(sets.generated) == len(sets.reference) == len(sets.other_real) == 2
    with pytest.raises(InputError, match="at least 2 videos of each kind"):
        choose_video_sets(EvalLDMSettings(), DATA, videos, rows[:1], 0)


def test_an_unconditional_run_has_no_prompts_to_obey():
    rows = [{"group": "held_out", "prompt": None}]
    reconstructed = [{"caption": "a large red circle moves left", "verdict": vars(Verdict("red", "circle", "left"))}]
    parts = accuracy_parts(rows, reconstructed)
    assert parts["prompt_accuracy"] is parts["prompt_accuracy_unseen"] is None
    assert parts["prompt_accuracy_reconstructed"]["color"] == 1


def test_samples_made_with_several_settings_are_refused(tmp_path):
    rows = [{"file": f"{i}.mp4", "group": "held_out", "ldm_sha256": "a", "guidance_scale": 3.0 + i} for i in range(2)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"mixes samples of several guidance_scale: 3\.0, 4\.0"):
        read_samples(tmp_path)


def test_samples_missing_broken_or_of_another_size_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no samples to score; make them with: .*sample_video"):
        read_samples(tmp_path)
    write_video(tmp_path / "short.mp4", np.zeros((9, 16, 16, 3), np.uint8), 8)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = SampleFiles([tmp_path / name for name in ("none.mp4", "short.mp4", "broken.mp4")], DATA)
    for number, message in enumerate(
        [
            r"none\.mp4 is missing",
            r"short\.mp4: .*\(9, 16, 16, 3\), expected \(17, 16",
            r"broken\.mp4.*cannot be decoded",
        ]
    ):
        with pytest.raises(InputError, match=message):
            files[number]


# The cache of references


def test_references_are_measured_once_and_those_of_another_protocol_are_refused_with_the_reason(tmp_path):
    description = {"kind": "reference", "frames": 16, "sha256": "a", **describe_clips([(sample("x"), 0)])}
    features = rng.normal(size=(1, 4)).astype(np.float32)
    times = []

    def measure():
        times.append(1)
        return features

    for _ in range(2):
        assert np.array_equal(cached_features(tmp_path, description, measure), features)
    assert len(times) == 1
    assert np.array_equal(given_features(tmp_path, description), features)
    with pytest.raises(InputError, match=r"another protocol:\n  frames: the file has 16, this evaluation needs 8"):
        given_features(tmp_path, description | {"frames": 8})
    other_clips = describe_clips([(sample("x"), 1)])
    with pytest.raises(InputError, match="clips_sha256"):
        given_features(tmp_path, description | other_clips)
    with pytest.raises(InputError, match="no other features there"):
        given_features(tmp_path, description | {"kind": "other"})
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"cut short")
    with pytest.raises(InputError, match="cannot be read as features"):
        cached_features(tmp_path, description, measure)


# Flicker


def test_flicker_is_what_is_added_to_the_changes_and_not_the_motion_itself():
    video = torch.rand(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert added_flicker(video, video).abs().max() == 0
    assert added_flicker(video + 0.3, video).abs().max() < 1e-4  # a constant error does not flicker
    blinking = video.clone()
    blinking[:, :, 1::2] += 2 / 255
    assert added_flicker(blinking, video).mean().item() == pytest.approx(1, rel=1e-4)  # one 8-bit level
    assert steadiness(torch.zeros(1, 3, 4, 8, 8)).item() == 1
    with pytest.raises(InputError, match="one shape"):
        added_flicker(video, video[:, :, :5])


def test_seams_are_found_between_latent_frames():
    video = torch.zeros(1, 3, 9, 8, 8)
    stepping = video.clone()
    stepping[:, :, 1:5] += 0.1
    stepping[:, :, 5:] += 0.2  # holds within each group of four
    assert seam_ratio(added_flicker(stepping, video), temporal_compression_ratio=4) > 100
    noise = torch.rand(4, 3, 17, 8, 8, generator=torch.Generator().manual_seed(0))
    assert seam_ratio(added_flicker(noise, torch.zeros_like(noise)), temporal_compression_ratio=4) == pytest.approx(
        1, abs=0.1
    )
    assert seam_ratio(added_flicker(noise, noise), temporal_compression_ratio=1) is None


# The table of numbers


def test_every_number_is_in_the_table_with_its_protocol_command_and_commit():
    about = {"n": 9, "protocol": {"frames": 17, "lpips": None}, "command": "evaluate", "commit": "abc"}
    part = {"frechet": 1.5, "frechet_interval": [1.0, 2.0], "floor": {"frechet": 0.5, "n": 8}, "name": "x", **about}
    report = {"distances": part, "commit": "abc", "minutes": {"vae": 2.0}, "clip_score": None}
    numbers = flatten(report, {"vae": {"minutes": 2.0, "command": "train", "commit": "def"}})
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(to_csv(numbers)))}
    assert rows.keys() == {"distances.frechet", "distances.floor.frechet", "minutes.vae"}
    assert [rows["distances.frechet"][key] for key in ("value", "low", "high", "n")] == ["1.5", "1.0", "2.0", "9"]
    assert rows["distances.frechet"]["protocol"] == "frames: 17"
    assert rows["distances.floor.frechet"]["n"] == "8"
    assert rows["distances.floor.frechet"]["commit"] == "abc"
    assert rows["minutes.vae"]["command"] == "train"


@pytest.mark.parametrize(
    ("value", "text"),
    [(29.434, "29.4"), (0.0405, "0.041"), (1315.13, "1315"), (0.0, "0.000"), (-0.00012, "-1.20e-04"), (None, "–")],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert short_number(value) == text
