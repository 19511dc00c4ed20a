"""Many volumes on one sheet: each is there, and none covers another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sheet import GAP, WIDTH, build_volume, main, picture
from tests.stories import noise, paths


def write_volume(folder: Path, name: str, shape: tuple[int, ...], dtype: str, axes: str) -> Path:
    volume = folder / f"{name}.npz"
    spacing = np.full(len(shape), 0.5)
    np.savez(volume, data=noise(shape, dtype), axes=axes, spacing=spacing, unit="millimeter")
    return volume


def test_a_sheet_shows_the_preview_of_every_volume(tmp_path: Path) -> None:
    """Two tiny volumes, big-endian over time and labels: pixel for pixel, side by side in the order of names."""
    volumes = [
        write_volume(tmp_path, "a_scan", (2, 5, 33, 40), ">i2", "tzyx"),
        write_volume(tmp_path, "b_labels", (7, 35, 33), "u2", "zyx"),
    ]
    assert main([str(tmp_path), "-o", str(tmp_path / "sheet.png")]) == 0
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    left = GAP
    for volume in volumes:
        place = build_volume(volume, tmp_path)
        assert paths(place) == ["0", "1"]
        expected = np.asarray(picture(place))
        found = page[GAP : GAP + expected.shape[0], left : left + WIDTH]
        np.testing.assert_array_equal(found, expected)
        left += WIDTH + GAP
    assert page.shape[1] == left


def test_a_folder_without_volumes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and a line that names the folder; no sheet is left."""
    assert main([str(tmp_path), "-o", str(tmp_path / "sheet.png")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
