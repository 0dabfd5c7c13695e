"""The file of a chain: what it may say, and what is refused before anything is trained."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from lmdali.model.layer_rates import parse_layer_rates, rate_at, rates_of
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.config_file import GivenSettings
from lmdali.tools.recipe import COMMAND_LINE
from lmdali.tools.stages import load_stages

EXAMPLE = Path(__file__).parents[1] / "docs" / "stages" / "cnn_star.toml"


@pytest.fixture(scope="module")
def chain_sets(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> dict[str, Path]:
    """Two tasks of three and two classes, a training and a validation set of each."""
    root = tmp_path_factory.mktemp("chain_sets")
    made = {}
    for task, classes in (("fruit", ("apple", "fig", "quince")), ("tree", ("elm", "oak"))):
        for part, count in (("train", 4), ("val", 2)):
            folder = make_photo_folder(root / f"{task}_{part}_source", classes, count, sides=(60, 90))
            made[f"{task}_{part}"] = make_dataset(folder, root / f"{task}_{part}")
    return made


def stage(sets: dict[str, Path], name: str, task: str, more: str = "") -> str:
    train, val = sets[f"{task}_train"], sets[f"{task}_val"]
    return f'[[stage]]\nname = "{name}"\ntrain_set = "{train}"\nval_set = "{val}"\n{more}\n'


def written(path: Path, *parts: str) -> Path:
    path.write_text("\n".join(parts))
    return path


def test_a_chain_is_read_with_what_is_shared_and_what_is_not(tmp_path: Path, chain_sets: dict[str, Path]) -> None:
    file = written(
        tmp_path / "c.toml",
        'preset = "small"\n[model]\nwidth = 0.03125\n[train]\nepochs = 9\nlr = 0.5\n[loader]\nbatch_size = 7\n',
        stage(chain_sets, "first", "fruit", "[stage.train]\nepochs = 4\n"),
        stage(
            chain_sets,
            "second",
            "tree",
            'init_from = "first"\ninit_checkpoint = "last"\ninit_layers = "conv"\n'
            '[stage.train]\nepochs = 3\nlayer_lr = "conv=x0.1"\n',
        ),
    )
    first, second = load_stages(file, [GivenSettings(COMMAND_LINE, {"loader": {"batch_size": 5}})])
    assert (first.name, first.num_classes, first.num_train, first.num_val) == ("first", 3, 12, 6)
    assert (first.init_from, first.copied, first.fresh[0], first.fresh[-1]) == (None, (), "conv1", "fc8")
    assert (second.num_classes, second.init_from, second.init_checkpoint) == (2, "first", "last")
    assert second.copied == ("conv1", "conv2", "conv3", "conv4", "conv5")
    assert second.fresh == ("fc6", "fc7", "fc8")
    for made, epochs in ((first, 4), (second, 3)):
        assert (made.recipe.name, made.recipe.preset.model.width, made.recipe.preset.batch_size) == (
            "small",
            0.03125,
            5,
        )
        # What is shared, then the stage's own, then the command line's: the last that says anything holds.
        assert (made.recipe.preset.train.epochs, made.recipe.preset.train.lr) == (epochs, 0.5)
        assert made.recipe.origins["train"]["epochs"] == f"{file}, stage {made.name}"
        assert made.recipe.origins["loader"]["batch_size"] == "--batch-size"
        json.dumps(made.to_json())
    assert (first.recipe.preset.train.layer_lr, second.recipe.preset.train.layer_lr) == ("", "conv=x0.1")


def test_the_head_is_left_out_unless_layers_are_named(tmp_path: Path, chain_sets: dict[str, Path]) -> None:
    file = written(
        tmp_path / "c.toml",
        stage(chain_sets, "a", "fruit"),
        stage(chain_sets, "b", "tree", 'init_from = "a"\n[stage.model]\nsixth_layer = false'),
    )
    assert load_stages(file)[1].fresh == ("fc8",)
    assert load_stages(file)[1].init_checkpoint == "best"


def test_a_stage_may_take_its_settings_from_a_file(tmp_path: Path, chain_sets: dict[str, Path]) -> None:
    settings = written(tmp_path / "s.toml", "[train]\nlr = 0.5\nmomentum = 0.8\n")
    file = written(
        tmp_path / "c.toml", stage(chain_sets, "a", "fruit", f'config = "{settings}"\n[stage.train]\nlr = 0.25\n')
    )
    train = load_stages(file)[0].recipe.preset.train
    assert (train.lr, train.momentum) == (0.25, 0.8)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('init_from = "b"', ConfigError, "init_from b is not an earlier stage"),
        ('init_from = "a"', ConfigError, "init_from a is not an earlier stage"),
        ('init_from = "runs/none"', InputError, "neither an earlier stage nor a checkpoint"),
        ('init_chekpoint = "best"', ConfigError, "no such key: init_chekpoint; did you mean init_checkpoint"),
        ('init_checkpoint = "worst"', ConfigError, "init_checkpoint is best or last, found 'worst'"),
        ("init_layers = 3", ConfigError, "init_layers is 3, expected a text"),
        ("[stage.trian]\nlr = 1", ConfigError, "no such key: trian; did you mean train"),
        ("[stage.train]\nlearning_rate = 1", ConfigError, "no such field: learning_rate"),
        ('[stage.train]\nlayer_lr = "conv6=0.1"', ConfigError, "layer_lr names conv6"),
        ("[stage.model]\nnum_classes = 9", ConfigError, "it is for 9 classes"),
        ('preset = "papre"', ConfigError, "did you mean paper"),
        ("[stage.train]\nlr = inf", ConfigError, "lr must be a finite number"),
    ],
)
def test_mistakes_are_refused_with_the_name_of_the_stage(
    tmp_path: Path, chain_sets: dict[str, Path], text: str, kind: type[Exception], message: str
) -> None:
    file = written(tmp_path / "c.toml", stage(chain_sets, "a", "fruit", text), stage(chain_sets, "b", "tree"))
    with pytest.raises(kind, match=message) as caught:
        load_stages(file)
    assert str(caught.value).count("stage a") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no \\[\\[stage\\]\\]"),
        ("stage = 3", "no \\[\\[stage\\]\\]"),
        ("[[stage]]\nname = 'a'", "train_set is missing"),
        ("[[stage]]\nname = 'a/b'\ntrain_set = 'x'\nval_set = 'y'", "a name is letters"),
        ("[[stage]]\nname = 'a'\ntrain_set = 'x'\nval_set = 'y'\n" * 2, "is there once"),
        ("epochs = 3\n[[stage]]\nname = 'a'", "no such key: epochs"),
        ("init_from = 'a'\n[[stage]]\nname = 'a'", "init_from is of one stage: put it below"),
    ],
)
def test_files_that_are_no_chain_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stages(written(tmp_path / "c.toml", text))


def test_datasets_of_different_classes_are_refused(tmp_path: Path, chain_sets: dict[str, Path]) -> None:
    mixed = {"fruit_train": chain_sets["fruit_train"], "fruit_val": chain_sets["tree_val"]}
    with pytest.raises(InputError, match="stage a: training and validation set have different classes"):
        load_stages(written(tmp_path / "c.toml", stage(mixed, "a", "fruit")))


def test_layers_that_do_not_fit_are_refused_before_the_first_stage(tmp_path: Path, chain_sets: dict[str, Path]) -> None:
    def chain(more: str) -> Path:
        return written(
            tmp_path / "c.toml",
            stage(chain_sets, "a", "fruit"),
            stage(chain_sets, "b", "tree", f'init_from = "a"\n{more}'),
        )

    with pytest.raises(InputError, match="stage b: layer fc8 cannot be copied"):
        load_stages(chain('init_layers = "all"'))
    with pytest.raises(InputError, match="stage b: layer conv6 was to be copied"):
        load_stages(chain('init_layers = "conv"\n[stage.model]\nsixth_layer = true'))
    with pytest.raises(InputError, match="stage b: layer conv1 cannot be copied"):
        load_stages(chain("[stage.model]\nwidth = 0.5"))


def test_the_example_is_the_chain_of_the_released_runs(tmp_path: Path, chain_sets: dict[str, Path]) -> None:
    document = tomllib.loads(EXAMPLE.read_text())
    text = EXAMPLE.read_text()
    for task, split in (("fruit", "ilsvrc2012"), ("tree", "fall2009"), ("tree", "fall2011")):
        for part in ("train", "val"):
            text = text.replace(f'"data/{split}/{part}"', f'"{chain_sets[f"{task}_{part}"]}"')
    stages = load_stages(written(tmp_path / "c.toml", text))
    assert [made.name for made in stages] == ["145-2012", "146-2009", "146-2011", "146-2012-2011"]
    assert [made.init_from for made in stages] == [None, "145-2012", "146-2009", "146-2011"]
    assert {made.init_checkpoint for made in stages[1:]} == {"last"}
    assert stages[1].copied == ("conv1", "conv2", "conv3", "conv4", "conv5")
    assert stages[2].copied == ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
    assert stages[3].fresh == ("fc8",)
    assert [made.recipe.preset.model.sixth_layer for made in stages] == [False, True, True, True]
    assert len(document["stage"]) == 4

    def own_rate(number: int, layer: str, epoch: float) -> tuple[str, float] | None:
        rule = rate_at(rates_of(parse_layer_rates(stages[number].recipe.preset.train.layer_lr), layer), epoch)
        return None if rule is None else (rule.kind, rule.value)

    assert [own_rate(1, layer, 0.0) for layer in ("conv1", "conv6", "fc7")] == [None, ("rate", 0.01), ("rate", 0.01)]
    assert own_rate(1, "fc8", 3.0) == ("factor", 1.0)
    assert [own_rate(2, layer, 1.0) for layer in ("conv6", "fc6")] == [None, ("rate", 0.01)]
    assert [own_rate(3, "conv1", epoch) for epoch in (0.0, 5.0, 7.0)] == [("rate", 1e-4), ("rate", 1e-5), ("frozen", 0)]
    assert [own_rate(3, "fc8", epoch) for epoch in (0.0, 0.1, 9.0)] == [None, ("rate", 0.01), ("factor", 1.0)]
    assert stages[3].recipe.preset.augment.lighting_epochs == 38
