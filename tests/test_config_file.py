"""Settings from files: what is taken, and how everything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.config_file import load_settings, read_settings


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, js = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text(
        'preset = "small"\n[model]\ndrop = ["conv3"]\n[train]\nlr = 1\nbias_lr = "none"\n[loader]\norder = "block"\n'
    )
    js.write_text(
        '{"preset": "small", "model": {"drop": "conv3", "num_classes": null}, "train": {"lr": 1.0, "bias_lr": null}, '
        '"loader": {"order": "block"}, "origins": {"train": {"lr": "--lr"}}}'
    )
    first, second = load_settings(toml), load_settings(js)
    assert first.preset == second.preset == "small"
    assert first.values == second.values
    assert first.values == {
        "model": {"drop": ("conv3",)},
        "train": {"lr": 1.0, "bias_lr": None},
        "loader": {"order": "block"},
    }
    assert first.origin == f"config file {toml}"


def test_the_number_of_classes_is_kept_as_an_expectation() -> None:
    assert read_settings({"model": {"num_classes": 10}}, origin="x").num_classes == 10
    assert read_settings({"model": {}}, origin="x").num_classes is None
    with pytest.raises(ConfigError, match="num_classes"):
        read_settings({"model": {"num_classes": "ten"}}, origin="x")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"training": {}}, "no such section: training; did you mean train"),
        ({"zzz": {}}, "no such section: zzz; there are preset, model, train, augment, loader"),
        ({"preset": "papre"}, "no such preset: papre; did you mean paper"),
        ({"preset": ["paper"]}, "no such preset"),
        ({"train": {"leraning_rate": 1, "lr": 1}}, "section train: no such field: leraning_rate"),
        ({"train": {"weight_deacy": 1}}, "did you mean weight_decay"),
        ({"train": {"width": 1}}, "width belongs to section model"),
        ({"train": {"lr": "fast"}}, "train.lr: expected a number, found 'fast'"),
        ({"model": 3}, "model is 3, expected names and values"),
    ],
)
def test_what_there_is_not_is_refused_with_the_nearest_that_there_is(document: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(document, origin="config file x.toml")
    assert str(caught.value).startswith("config file x.toml")


def test_of_a_runs_facts_the_recipe_is_taken(tmp_path: Path) -> None:
    facts = {"train": "data/train", "sessions": [{}], "recipe": {"preset": "small", "train": {"lr": 0.5}}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    found = load_settings(tmp_path / "run.json")
    assert (found.preset, found.values) == ("small", {"train": {"lr": 0.5}})
    (tmp_path / "run.json").write_text(json.dumps(facts | {"recipe": None}))
    with pytest.raises(ConfigError, match="recipe is None, expected the settings of a run"):
        load_settings(tmp_path / "run.json")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_settings(tmp_path / "none.toml")
    for name, text in (("a.toml", "= 3"), ("a.json", "{"), ("b.json", "[1]"), ("c.toml", "\udcff")):
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=name):
            load_settings(tmp_path / name)
