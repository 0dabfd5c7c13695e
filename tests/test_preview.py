from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from command_line import run

from lmdali.model.pen import Pen
from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.pixel_transform import pixel_transform
from lmdali.pipeline.resized_crop import resize_window
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.augment_options import AUGMENTS
from lmdali.tools.contact_sheet import GAP, MARGIN, Tile, draw_sheet
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.preview import command, draw_preview, undo_normalization
from lmdali.tools.sources import open_source

NUM_IMAGES = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve 256 x 256 pictures of two classes, raw, so that every pixel is known."""
    root = tmp_path_factory.mktemp("preview")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        folder = root / "source" / ("cat", "dog_breed, hound")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(40, 216, (8, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC))
    convert(open_source(root / "source"), root / "set", ConvertConfig(encoding="raw"), workers=1, quiet=True)
    return root / "set"


def tile(side: int = 120, value: int = 100, caption: str = "cat", note: str = "#1") -> Tile:
    return Tile(np.full((side, side, 3), value, np.uint8), caption, note)


def inked_columns(sheet: np.ndarray) -> np.ndarray:
    return np.flatnonzero((sheet != 255).any(axis=(0, 2)))


# The sheet.


def test_pictures_keep_every_pixel_and_lie_on_an_even_grid() -> None:
    tiles = [tile(value=value) for value in (10, 20, 30, 40, 50)]
    sheet = draw_sheet(tiles, columns=3, title="set", detail="seed 0")
    assert sheet.shape[1] == 2 * MARGIN + 3 * 120 + 2 * GAP
    for value, column in ((10, 0), (20, 1), (30, 2), (40, 0), (50, 1)):
        rows, columns = np.nonzero((sheet == value).all(axis=2))
        block = sheet[rows.min() : rows.min() + 120, MARGIN + column * (120 + GAP) :][:, :120]
        assert (block == value).all(), value
        assert columns.min() >= MARGIN


def test_margins_stay_white() -> None:
    long = "a name that goes on " * 20
    sheet = draw_sheet([tile(caption=long, note=long)] * 4, columns=2, title=long, detail=long)
    edge = MARGIN - 2
    for border in (sheet[:edge], sheet[-edge + 12 :], sheet[:, :edge], sheet[:, -edge:]):
        assert (border == 255).all()


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    checker = (np.indices((40, 40)).sum(axis=0) % 2 * 255).astype(np.uint8)
    sheet = draw_sheet([Tile(np.stack([checker] * 3, axis=2), "", "")], columns=1, title="", detail="")
    top = np.flatnonzero((sheet[:, MARGIN] == 0).all(axis=1))[0]
    shown = sheet[top : top + 120, MARGIN : MARGIN + 120, 0]
    assert np.array_equal(shown, checker.repeat(3, axis=0).repeat(3, axis=1))


def test_a_text_is_cut_to_its_room_with_an_ellipsis() -> None:
    pen = Pen(np.full((40, 400, 3), 255, np.uint8))
    name = "German short-haired pointer, a very long name"
    short = pen.shorten(name, 15, 120)
    assert short.endswith("...") and name.startswith(short[:-3].rstrip())
    assert pen.width(short, 15) <= 120 < pen.width(name, 15)
    assert pen.shorten("cat", 15, 120) == "cat"
    assert pen.shorten("cat", 15, 1) == ""
    assert pen.shorten("caf\udce9", 15, 120) == r"caf\xe9"


@pytest.mark.parametrize("typeface", [True, False])
def test_text_is_written_where_it_is_asked_for(typeface: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not typeface:  # as OpenCV 4 is
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    sheet = np.full((60, 400, 3), 255, np.uint8)
    pen = Pen(sheet)
    pen.write("shape and texture", 50, 40, 16, (0, 0, 0), 300)
    columns = inked_columns(sheet)
    assert 48 <= columns.min() <= 54
    assert abs(columns.max() - 50 - pen.width("shape and texture", 16)) < 12
    rows = np.flatnonzero((sheet != 255).any(axis=(1, 2)))
    assert 22 <= rows.min() < rows.max() <= 46
    assert sheet.min() < 100


def test_names_that_are_no_text_are_drawn_all_the_same() -> None:
    names = ["caf\udce9", "tab\tand\x07bell", ""]
    sheet = draw_sheet([tile(caption=name, note=name) for name in names], columns=3, title=names[0], detail=names[1])
    assert (sheet != 255).any()


# The preview.


@pytest.mark.parametrize("name", sorted(AUGMENTS))
def test_undoing_the_normalization_leaves_the_stored_pixels_and_the_lighting(dataset: Path, name: str) -> None:
    config = AUGMENTS[name]()
    plain = np.random.default_rng(1).integers(40, 216, (3, 256, 256, 3), np.uint8)
    params = draw_params(config, seed=3, epoch=1, indices=np.arange(3), positions=np.arange(3), image_size=256)
    transform = pixel_transform(config, load_eigenbasis(dataset), 256).at(1)
    seen = undo_normalization(apply_params(plain, params, transform, 224), params, transform)
    lighting = transform.shifts(params)
    for view in range(len(params)):
        y, x = params.crop_yx[view]
        height, width = (224, 224) if params.sides is None else params.sides[view]
        patch = plain[view // config.num_views, y : y + height, x : x + width]
        patch = (patch if params.sides is None else resize_window(patch, 224)).astype(np.float64)
        expected = (patch[:, ::-1] if params.flip[view] else patch) + lighting[view]
        assert np.abs(seen[view] - expected.clip(0, 255)).max() <= 0.51
    assert (lighting != 0).any() == (config.lighting != "none")


def test_the_sheet_holds_what_the_trainer_sees(dataset: Path, tmp_path: Path) -> None:
    summary = draw_preview(dataset, tmp_path / "sheet.png", rows=2, columns=3, seed=5, epoch=2)
    config = LoaderConfig(dataset=dataset, batch_size=6, seed=5, augment=AugmentConfig.paper(), layout="NHWC")
    with create_loader(config) as loader:
        loader.set_epoch(2)
        batch = next(iter(loader))
    assert summary.indices == tuple(batch.indices.tolist())
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    assert sheet.shape[:2] == (summary.height, summary.width)
    indices = batch.indices.numpy()
    params = draw_params(config.augment, seed=5, epoch=2, indices=indices, positions=indices, image_size=256)
    transform = pixel_transform(config.augment, load_eigenbasis(dataset), 256)
    expected = undo_normalization(batch.images.to(torch.float32).numpy(), params, transform)
    top = MARGIN + 68
    for column in range(3):
        left = MARGIN + column * (224 + GAP)
        assert np.array_equal(sheet[top : top + 224, left : left + 224], expected[column])


def test_another_seed_or_epoch_gives_another_sheet_and_the_same_one_the_same_bytes(
    dataset: Path, tmp_path: Path
) -> None:
    pictures = []
    for number, (seed, epoch) in enumerate([(0, 0), (0, 0), (1, 0), (0, 1)]):
        out = tmp_path / f"{number}.png"
        draw_preview(dataset, out, rows=1, columns=4, seed=seed, epoch=epoch)
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3


def test_windows_are_of_the_size_that_was_asked_for(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ["--augment", "resized", "--min-area", "1", "--max-aspect", "1", "--no-flip", "--rows", "1"]
    arguments = ["preview", dataset, "--columns", "1", *whole, "--crop-size", "128", "--json"]
    assert run(*arguments, "--out", tmp_path / "sheet.png") == 0
    (index,) = json.loads(capsys.readouterr().out)["indices"]
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    stored = ShardReader(dataset, load_manifest(dataset)).read(index, lambda record: bytes(record.data))
    image = np.frombuffer(stored[-256 * 256 * 3 :], np.uint8).reshape(256, 256, 3)
    shown = sheet[MARGIN + 68 :, MARGIN:][:128, :128].astype(int)
    assert np.abs(shown - resize_window(image, 128)).max() <= 1
    assert run("preview", dataset, "--out", tmp_path / "sheet.png", "--min-area", "0.5") == 2
    assert "take --augment resized" in capsys.readouterr().err


def test_ten_views_fill_a_row_each(dataset: Path, tmp_path: Path) -> None:
    summary = draw_preview(dataset, tmp_path / "ten.jpg", augment="ten", rows=2)
    assert len(summary.indices) == 2
    assert summary.width == 2 * MARGIN + 10 * 224 + 9 * GAP


def test_a_sheet_larger_than_the_dataset_shows_all_of_it(dataset: Path, tmp_path: Path) -> None:
    summary = draw_preview(dataset, tmp_path / "all.png", rows=50, columns=4)
    assert sorted(summary.indices) == list(range(NUM_IMAGES))


def test_wrong_arguments_are_named_before_anything_is_read(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.jpg"):
        draw_preview(tmp_path / "nothing", tmp_path / "sheet.gif")
    with pytest.raises(ConfigError, match="paper, original2012, resized, center, ten"):
        draw_preview(dataset, tmp_path / "sheet.png", augment="other")
    with pytest.raises(ConfigError, match="0 x 6"):
        draw_preview(dataset, tmp_path / "sheet.png", rows=0)
    with pytest.raises(InputError):
        draw_preview(tmp_path / "nothing", tmp_path / "sheet.png")


def test_the_command_writes_the_picture_and_one_json_document(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.webp"
    result = CliRunner().invoke(command, [str(dataset), "--out", str(out), "--rows", "1", "--columns", "2", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["out"] == str(out) and len(document["indices"]) == 2
    assert cv2.imread(str(out)).shape == (document["height"], document["width"], 3)


def test_samples_come_in_the_order_of_the_preset(dataset: Path, tmp_path: Path) -> None:
    """The 2012 code shuffles once: each epoch begins with the same samples."""
    drawn = {
        (augment, epoch): draw_preview(dataset, tmp_path / "s.png", augment=augment, rows=1, epoch=epoch).indices
        for augment in ("paper", "original2012")
        for epoch in (0, 3)
    }
    assert drawn["original2012", 3] == drawn["original2012", 0] == drawn["paper", 0] != drawn["paper", 3]
