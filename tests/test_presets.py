"""The named recipes, held against what they are named after."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.rates import LearningRates
from lmdali.model.schedule import create_schedule
from lmdali.model.train_config import TrainConfig
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError


def rates(preset: Preset, epoch: float, parameter: str) -> float | None:
    """Rate of a parameter at an epoch, None if it is frozen."""
    with torch.device("meta"):
        net = AlexNet(dataclasses.replace(preset.model, width=1 / 32, num_classes=4))
    optimizer = PaperSGD(parameter_groups(net, preset.train))
    LearningRates(preset.train, create_schedule(preset.train.schedule, preset.train.epochs)).apply(optimizer, epoch)
    wanted = dict(net.named_parameters())[parameter]
    group = next(group for group in optimizer.param_groups if any(weight is wanted for weight in group["params"]))
    return None if group["frozen"] else group["lr"]


def test_the_paper_preset_is_the_paper() -> None:
    paper = PRESETS["paper"]
    assert (paper.model.width, paper.model.init, paper.model.lrn_alpha) == (1.0, "paper", 5e-4)
    train = paper.train
    assert (train.lr, train.momentum, train.weight_decay, train.epochs) == (0.01, 0.9, 5e-4, 90)
    assert (train.schedule, train.label_smoothing, train.bias_decay) == ("plateau", 0.0, False)
    assert (train.bias_lr, train.bias_schedule, train.layer_lr) == (None, None, "")
    assert paper.augment == AugmentConfig.paper()
    assert (paper.batch_size, paper.order, paper.drop_last) == (128, "shuffled", None)


def test_run_145_differs_from_the_paper_in_these_fields_alone() -> None:
    paper, run = PRESETS["paper"], PRESETS["original2012"]
    differences = {
        name: getattr(getattr(run, section), name)
        for section in ("model", "train", "augment")
        for name in (field.name for field in dataclasses.fields(getattr(run, section)))
        if getattr(getattr(run, section), name) != getattr(getattr(paper, section), name)
    }
    assert differences == {
        "init": "original2012",
        "lrn_place": "before_first_relu",
        "lrn_alpha": 1e-4,
        "map_norm": True,
        "epochs": 91,
        "bias_lr": 0.02,
        "schedule": "fixed:25,51,79:91",
        "bias_schedule": "constant",
        "layer_lr": "conv1=1e-5@67,conv1=frozen@72",
        "crop_chunk": 32,
        "mean_window": "center",
        "lighting": "roots",
        "lighting_rescale": True,
        "lighting_epochs": 67,
    }
    assert (run.batch_size, run.order, run.drop_last) == (128, "shuffled_once", False)


def test_run_145_has_the_rates_of_its_log() -> None:
    run = PRESETS["original2012"]
    weights = {0: 1e-2, 24.99: 1e-2, 25: 1e-3, 50: 1e-3, 51: 1e-4, 66: 1e-4, 72: 1e-4, 78: 1e-4, 79: 1e-5, 90: 1e-5}
    for epoch, rate in weights.items():
        assert rates(run, epoch, "conv2.weight") == pytest.approx(rate)
        assert rates(run, epoch, "fc8.bias") == 0.02
    assert rates(run, 66.99, "conv1.weight") == pytest.approx(1e-4)
    assert rates(run, 67.0, "conv1.weight") == rates(run, 71.99, "conv1.weight") == 1e-5
    assert rates(run, 71.99, "conv1.bias") == 0.02
    assert rates(run, 72.0, "conv1.weight") is rates(run, 90.0, "conv1.bias") is None
    schedule = create_schedule(run.train.schedule, run.train.epochs)
    for _ in range(91):
        assert not schedule.finished
        schedule.end_epoch(0.5)
    assert schedule.finished


def test_caffe_cuts_every_twenty_epochs_and_biases_learn_twice_as_fast() -> None:
    caffe = PRESETS["caffe"]
    for epoch, rate in ((0, 1e-2), (19.9, 1e-2), (20, 1e-3), (40, 1e-4), (60, 1e-5), (80, 1e-6)):
        assert rates(caffe, epoch, "conv3.weight") == pytest.approx(rate)
        assert rates(caffe, epoch, "conv3.bias") == pytest.approx(2 * rate)
    model, augment = caffe.model, caffe.augment
    assert (model.init, model.lrn_alpha, model.lrn_k, model.lrn_across_towers) == ("caffe", 1e-4, 1.0, True)
    assert (model.dropout_rule, model.lrn_place) == ("inverted", "after_relu")
    assert (augment.crop_size, augment.lighting, augment.mean_window) == (227, "none", "aligned")
    assert (caffe.batch_size, caffe.order, caffe.train.bias_decay) == (256, "shuffled_once", False)


def test_caffes_227_pixels_give_the_same_shapes() -> None:
    net = AlexNet(dataclasses.replace(PRESETS["caffe"].model, width=1 / 32, num_classes=4)).eval()
    images = torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    assert net(images).shape == (1, 4)
    # The 55 windows of conv1 end with the image, so what is padded for 224 is never looked at.
    assert net.features(images).shape == net.features(images[:, :, :224, :224]).shape


@pytest.mark.parametrize("name", PRESETS)
def test_patches_that_the_network_does_not_take_are_refused(name: str) -> None:
    for size in (1, 100, 223, 256):
        with pytest.raises(ConfigError, match=f"crop_size {size} leaves fc6 .* inputs, it has .*: use 224, or 227"):
            PRESETS[name].changed(augment={"crop_size": size})
    for size in (224, 227):
        assert PRESETS[name].changed(augment={"crop_size": size}).augment.crop_size == size


def test_fast_keeps_the_papers_rate_per_sample_and_its_network() -> None:
    fast, paper = PRESETS["fast"], PRESETS["paper"]
    assert fast.train.lr / fast.batch_size == pytest.approx(paper.train.lr / paper.batch_size)
    assert dataclasses.replace(fast.model, init="paper") == paper.model
    assert (fast.train.precision, fast.train.channels_last) == ("bfloat16", True)
    assert (fast.train.epochs, fast.augment.lighting, fast.augment.lighting_epochs) == (60, "roots", 48)
    assert rates(fast, 0.0, "conv1.weight") == 0.0
    assert rates(fast, 2.0, "conv1.weight") == pytest.approx(0.04)


@pytest.mark.parametrize("name", PRESETS)
def test_lighting_goes_with_all_that_hangs_on_it(name: str) -> None:
    dark = PRESETS[name].changed(augment={"lighting": "none"}).augment
    assert (dark.lighting, dark.lighting_rescale, dark.lighting_epochs) == ("none", False, None)
    with pytest.raises(ConfigError, match="lighting_rescale"):
        PRESETS[name].changed(augment={"lighting": "none", "lighting_rescale": True})


def test_impossible_values_are_refused() -> None:
    for changes in ({"train": {"lr": -1.0}}, {"batch_size": 0}, {"augment": {"crop": "ten", "flip": False}}):
        with pytest.raises(ConfigError):
            PRESETS["paper"].changed(**changes)  # type: ignore[arg-type]
    ten = {"crop": "ten", "flip": False, "lighting": "none"}
    with pytest.raises(ConfigError, match="one view"):
        PRESETS["paper"].changed(augment=ten)


def test_changes_leave_the_rest_alone() -> None:
    made = PRESETS["caffe"].changed(model={"width": 0.5}, train={"epochs": 95}, batch_size=64)
    assert made.model == dataclasses.replace(PRESETS["caffe"].model, width=0.5)
    assert made.train == TrainConfig(epochs=95, bias_lr=0.02, schedule="fixed:20,40,60,80:90")
    assert (made.batch_size, made.order) == (64, "shuffled_once")
    assert AlexNetConfig.from_json(made.model.to_json()) == made.model


def test_sizes_of_windows_go_with_windows_only() -> None:
    """`--min-area 0.25` without `--crop resized` would change nothing, and nobody would be told."""
    small = PRESETS["small"]
    for field, value in {"min_area": 0.25, "max_aspect": 2.0}.items():
        message = f'{field} {value} changes nothing with crop "random": take crop "resized", or leave it at'
        with pytest.raises(ConfigError, match=message):
            small.changed(augment={field: value})
    windows = small.changed(augment={"crop": "resized", "normalize": "channel_mean", "min_area": 0.25})
    assert windows.augment.min_area == 0.25
    assert windows.changed(augment={"crop": "random", "normalize": "mean_image"}) == small
