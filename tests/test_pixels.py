"""Image and label files: what is accepted, what it becomes, what is refused and why."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.api import as_pixels
from tutelage.data.maps import read_colour_ids, read_depth, read_index_mask, read_normals, read_valid
from tutelage.data.pixels import MAX_PIXELS, FilePicture
from tutelage.data.source import BadImage
from tutelage.errors import UserError


def photo(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth picture whose four corners differ, so that turns show."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 128 + 0 * x], 2).astype(np.uint8))


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def bomb(path: Path, side: int) -> Path:
    """A valid 1-bit PNG of side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def test_rgb_comes_back_exact_writable_and_again(tmp_path: Path) -> None:
    picture = FilePicture(saved(tmp_path / "a.png", photo()))
    first, second = picture.read(), picture.read()
    assert (picture.height, picture.width) == (24, 40)
    assert first.dtype == np.uint8
    assert first.flags.writeable
    assert first.flags.c_contiguous
    assert np.array_equal(first, np.asarray(photo()))
    assert np.array_equal(first, second)
    torch.from_numpy(first)
    assert picture.notes == []


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif"])
def test_every_accepted_format_is_read(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    picture = FilePicture(saved(tmp_path / name, photo(), **options))
    assert np.abs(picture.read().astype(int) - np.asarray(photo())).mean() < 12  # a GIF has 256 colours


def golden_cases() -> dict[str, tuple[Image.Image, dict[str, object], list[tuple[int, int, int]]]]:
    """Images whose first pixels have a known colour."""
    ones = lambda *shape: np.full((16, 16, *shape), 0, np.uint8)  # noqa: E731
    palette = Image.fromarray(ones(), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    see_through = palette.copy()
    grey_alpha = Image.merge("LA", [Image.new("L", (16, 16), 100), Image.new("L", (16, 16), 255)])
    grey_alpha.putpixel((1, 0), (100, 0))
    rgba = Image.new("RGBA", (16, 16), (10, 20, 30, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 51))  # a fifth of black over white
    bits = Image.new("1", (16, 16), 0)
    bits.putpixel((1, 0), 1)
    wide = np.zeros((16, 16), np.uint16)
    wide[0, :4] = 257, 65535, 128, 129  # 128.5 is the border between 0 and 1
    key = Image.new("RGB", (16, 16), (1, 2, 3))
    key.putpixel((1, 0), (9, 9, 9))
    return {
        "palette.png": (palette, {}, [(10, 20, 30), (200, 100, 50)]),
        "palette-alpha.png": (see_through, {"transparency": 1}, [(10, 20, 30), (255, 255, 255)]),
        "la.png": (grey_alpha, {}, [(100, 100, 100), (255, 255, 255)]),
        "rgba.png": (rgba, {}, [(10, 20, 30), (204, 204, 204)]),
        "key.png": (key, {"transparency": (9, 9, 9)}, [(1, 2, 3), (255, 255, 255)]),
        "bits.png": (bits, {}, [(0, 0, 0), (255, 255, 255)]),
        "grey.png": (Image.new("L", (16, 16), 77), {}, [(77, 77, 77)]),
        "wide.png": (Image.fromarray(wide), {}, [(1, 1, 1), (255, 255, 255), (0, 0, 0), (1, 1, 1)]),
        "wide.tif": (Image.fromarray(wide), {}, [(1, 1, 1), (255, 255, 255), (0, 0, 0), (1, 1, 1)]),
        "ink.tif": (Image.new("CMYK", (16, 16), (255, 0, 51, 0)), {}, [(0, 255, 204)]),
    }


@pytest.mark.parametrize("name", golden_cases())
def test_conversions_give_golden_pixels(tmp_path: Path, name: str) -> None:
    image, options, wanted = golden_cases()[name]
    pixels = FilePicture(saved(tmp_path / name, image, **options)).read()
    with Image.open(tmp_path / name) as same:
        assert np.array_equal(as_pixels(same), pixels)
    assert pixels.shape == (16, 16, 3)
    assert [tuple(p) for p in pixels[0, : len(wanted)].tolist()] == wanted


def test_a_picture_in_memory_without_a_known_white_is_refused() -> None:
    with pytest.raises(UserError, match="32 bit"):
        as_pixels(Image.new("F", (16, 16)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_may_lie_on_the_accelerator() -> None:
    tensor = torch.randint(0, 256, (3, 16, 32), dtype=torch.uint8)
    assert np.array_equal(as_pixels(tensor.cuda()), as_pixels(tensor))


def test_conversions_and_wrong_names_are_noted(tmp_path: Path) -> None:
    assert "CMYK" in FilePicture(saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16)))).notes[0]
    assert "16 bit" in FilePicture(saved(tmp_path / "a.png", Image.new("I;16", (16, 16)))).notes[0]
    photo().save(tmp_path / "wrong.png", "JPEG")
    wrong = FilePicture(tmp_path / "wrong.png")
    assert wrong.notes == ["the name ends in '.png' but the content is JPEG"]
    assert wrong.read().shape == (24, 40, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_rotation_is_applied_exactly_once(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, object] = {"exif": exif}
    options |= {"quality": 95, "subsampling": 0} if name.endswith("jpg") else {}
    options |= {"lossless": True} if name.endswith("webp") else {}
    stored = np.asarray(photo())
    upright = {  # by the standard: where row 0 and column 0 of the stored image are seen
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }.get(orientation, stored)
    picture = FilePicture(saved(tmp_path / name, photo(), **options))
    assert (picture.height, picture.width) == upright.shape[:2]
    assert np.abs(picture.read().astype(int) - upright).max() < 6
    with Image.open(tmp_path / name) as image:
        assert np.array_equal(as_pixels(image), picture.read())
    assert picture.read(0.5).shape[:2] in (upright.shape[:2], tuple((s + 1) // 2 for s in upright.shape[:2]))


@pytest.mark.parametrize("size", [(641, 479), (640, 480), (37, 1000), (9, 9)])
@pytest.mark.parametrize("scale", [1.0, 0.75, 0.5, 0.49, 0.3, 0.25, 0.13, 0.125, 0.01])
def test_scaled_reading_keeps_its_promise(tmp_path: Path, size: tuple[int, int], scale: float) -> None:
    path = tmp_path / "a.jpg"
    photo(*size).save(path)
    picture = FilePicture(path)
    height, width, _ = picture.read(scale).shape
    factors = [d for d in (1, 2, 4, 8) if (-(-size[1] // d), -(-size[0] // d)) == (height, width)]
    assert factors
    assert 1 / factors[0] >= scale or factors[0] == 1
    if min(size) >= 16:  # as much is saved as may be
        assert max(factors) == max(d for d in (1, 2, 4, 8) if d == 1 or 1 / d >= scale)
    assert (picture.height, picture.width) == (size[1], size[0])
    assert picture.read().shape == (size[1], size[0], 3)  # and the full size is still to be had


def test_a_scaled_picture_shows_the_same_scene(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", photo(640, 480), quality=95)
    half = FilePicture(path).read(0.5).astype(int)
    assert np.abs(half - np.asarray(photo(640, 480).reduce(2))).mean() < 2


def bad_files(folder: Path) -> dict[str, Path]:
    jpeg = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(jpeg, "JPEG")
    whole = jpeg.getvalue()
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    contents = {
        "0 bytes": b"",
        "not an image": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "cannot be decoded: image file is truncated": whole[: len(whole) // 2],
        "cannot be decoded: image file is truncated (": whole[:-2],
        "cannot be decoded: image file is": png.getvalue()[: len(png.getvalue()) // 2],
        "header": whole[:30],
    }
    files = {}
    for number, (reason, data) in enumerate(contents.items()):
        files[reason] = folder / f"{number}.jpg"
        files[reason].write_bytes(data)
    frames = [Image.new("P", (16, 16), i) for i in range(2)]
    for kind in ("gif", "webp", "png", "tif"):
        frames[0].convert("RGB").save(
            folder / f"several.{kind}", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")]
        )
        files[f"animated, or of several pages{' ' * len(kind) if kind != 'gif' else ''}"] = folder / f"several.{kind}"
    files["too small: 1 x 1"] = saved(folder / "one.png", Image.new("RGB", (1, 1)))
    files["too long and thin: 20000 x 10"] = saved(folder / "thin.png", Image.new("RGB", (20000, 10)))
    files["32 bit"] = saved(folder / "float.tif", Image.fromarray(np.zeros((16, 16), np.float32)))
    files["cannot be read: No such file"] = folder / "gone.jpg"
    files["cannot be read: Is a directory"] = folder
    palette = saved(folder / "palette.png", Image.new("P", (16, 16)))
    data = palette.read_bytes()
    start = data.index(b"PLTE") - 4
    palette.write_bytes(data[:start] + data[start + 12 + int.from_bytes(data[start : start + 4], "big") :])
    files["palette colours without its palette"] = palette
    files["format we read"] = saved(folder / "picture.ppm", photo())
    return files


def test_bad_files_are_refused_with_their_reason(tmp_path: Path) -> None:
    for reason, path in bad_files(tmp_path).items():
        with pytest.raises(BadImage) as caught:
            FilePicture(path).read()
        assert reason.strip() in str(caught.value), path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_cut_file_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    path = tmp_path / "a"
    noise.save(path, kind)
    data, whole = path.read_bytes(), FilePicture(path).read()
    refused = 0
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        try:
            assert np.array_equal(FilePicture(path).read(), whole), length
        except BadImage:
            refused += 1
    assert refused > 0.8 * len(range(0, len(data), 7))


@pytest.mark.parametrize("side", [14_000, 9_750, 9_000])  # above Pillow's error, between its warning and error, ours
def test_decompression_bombs_are_refused_from_the_header(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / "bomb.png", side)
    assert path.stat().st_size < 40_000
    assert side * side > MAX_PIXELS
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(BadImage, match="too many pixels"):
        FilePicture(path)


def test_the_first_of_a_phones_several_pictures_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo().save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    picture = FilePicture(path)
    assert picture.notes == []
    assert np.abs(picture.read().astype(int) - np.asarray(photo())).mean() < 6
    assert picture.read(0.5).shape == (12, 20, 3)


def test_index_masks(tmp_path: Path) -> None:
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    for name, image in (
        ("l.png", Image.fromarray(ids)),
        ("p.png", palette),
        ("wide.png", Image.fromarray(ids.astype(np.uint16))),
    ):
        mask = read_index_mask(saved(tmp_path / name, image))
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, ids), name
    bits = read_index_mask(saved(tmp_path / "1.png", Image.fromarray(ids % 2 == 1)))
    assert np.array_equal(bits, ids % 2)
    for image, problem in (
        (Image.fromarray(ids.astype(np.uint16) * 5), "above 255"),
        (Image.new("RGB", (8, 8)), "not an index mask"),
    ):
        with pytest.raises(UserError, match=problem):
            read_index_mask(saved(tmp_path / "bad.png", image))
    Image.fromarray(ids).save(tmp_path / "lossy.png", "JPEG")
    with pytest.raises(UserError, match="changes values"):
        read_index_mask(tmp_path / "lossy.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "l.png").read_bytes()[:48])
    with pytest.raises(UserError, match="decoded"):
        read_index_mask(tmp_path / "cut.png")


def test_colour_ids(tmp_path: Path) -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[0, 0] = 1, 2, 3
    path = saved(tmp_path / "a.png", Image.fromarray(rgb))
    assert read_colour_ids(path)[0, 0] == 1 + 2 * 256 + 3 * 65536
    with pytest.raises(UserError, match="colour-coded"):
        read_colour_ids(saved(tmp_path / "b.png", Image.new("L", (8, 8))))


def test_depth_from_all_formats(tmp_path: Path) -> None:
    stored = np.array([[0, 1500], [2500, 60000]], np.uint16)
    metres = stored.astype(np.float32) / 1000
    saved(tmp_path / "a.png", Image.fromarray(stored))
    saved(tmp_path / "a.tif", Image.fromarray(metres))
    np.save(tmp_path / "a.npy", metres[:, :, None])
    np.savez(tmp_path / "a.npz", depth=metres)
    for name, unit in (("a.png", 0.001), ("a.tif", 1.0), ("a.npy", 1.0), ("a.npz", 1.0)):
        depth = read_depth(tmp_path / name, unit, maximum=10)
        assert depth.metres.dtype == np.float32
        assert depth.valid.tolist() == [[False, True], [True, False]], name
        np.testing.assert_allclose(depth.metres, [[0, 1.5], [2.5, 0]], rtol=1e-6)
        assert depth.odd == 0  # a stated invalid value is nothing odd, nor is what is too far


def test_depth_masks_and_counts_what_is_no_depth(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[np.nan, np.inf, -np.inf, -1.0, 0.0, 99.0, 2.0]]))
    depth = read_depth(tmp_path / "a.npy", 1.0, invalid=(99.0,))
    assert depth.valid.tolist() == [[False] * 6 + [True]]
    assert depth.metres.tolist() == [[0.0] * 6 + [2.0]]
    assert depth.odd == 5


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "html.npy").write_text("<html>")
    for name in ("a.npy", "two.npz", "html.npy", "gone.npy"):
        with pytest.raises(UserError, match="array cannot be read"):
            read_depth(tmp_path / name, 1.0)
    np.save(tmp_path / "flat.npy", np.zeros(4))
    with pytest.raises(UserError, match="not a depth map"):
        read_depth(tmp_path / "flat.npy", 1.0)


def test_normals_from_image_and_array(tmp_path: Path) -> None:
    vectors = np.array([[[0, 0, -1], [0.6, 0, -0.8], [0, 0, 0], [0, 0, -0.9], [np.nan, 0, -1]]], np.float32)
    np.save(tmp_path / "a.npy", vectors)
    normals = read_normals(tmp_path / "a.npy")
    assert normals.vectors.shape == (3, 1, 5)
    assert normals.valid.tolist() == [[True, True, False, True, False]]
    np.testing.assert_allclose(normals.vectors[:, 0, 3], [0, 0, -1])
    assert (normals.mended, normals.odd) == (1, 1)
    np.testing.assert_allclose(read_normals(tmp_path / "a.npy", "xz").vectors[:, 0, 1], [-0.6, 0, 0.8], atol=1e-6)

    coded = np.round((vectors[:, :3] + 1) * 127.5).astype(np.uint8)
    coded = np.concatenate([coded, np.zeros((1, 1, 3), np.uint8)], 1)  # black stands for nothing
    normals = read_normals(saved(tmp_path / "a.png", Image.fromarray(coded)))
    assert normals.valid.tolist() == [[True, True, False, False]]
    np.testing.assert_allclose(normals.vectors[:, 0, 1], [0.6, 0, -0.8], atol=0.006)
    lengths = np.linalg.norm(normals.vectors, axis=0)[normals.valid]
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert (normals.mended, normals.odd) == (0, 1)


def test_validity_masks(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0.0, 1.0]]))
    saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 255]], np.uint8)))
    assert read_valid(tmp_path / "a.npy").tolist() == [[False, True]]
    assert read_valid(tmp_path / "a.png").tolist() == [[False, True]]
