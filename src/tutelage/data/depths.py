"""Images beside depth maps, and surface normals, stored or derived from depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field as Option
from pydantic import model_validator

from tutelage.data.files import existing, several
from tutelage.data.maps import MAPS, Bools, Depth, Normals, read_depth, read_normals, read_valid
from tutelage.data.normals import Camera, normals_from_depth
from tutelage.data.pairs import Found, PairDataset, PairSource
from tutelage.data.source import BadImage, Borrowed, Dataset, Fault, Place
from tutelage.errors import UserError
from tutelage.types import Field, Vectors


class DepthPairs(PairSource):
    """Images and depth maps: 16-bit PNG (NYU), .npy with a mask file beside it (DIODE: `label_suffix: _depth`,
    `mask_suffix: _depth_mask`), .npz or float TIFF."""

    format: Literal["depth"] = "depth"
    head: str
    depths: Path
    unit: Annotated[float, Option(gt=0)] = 1.0
    """Metres for a stored 1: 0.001 for millimetres."""
    invalid: tuple[float, ...] = (0.0,)
    """Stored values that mean "not measured"."""
    maximum: Annotated[float, Option(gt=0)] | None = None
    """Metres; what is deeper is not used."""
    mask_suffix: str | None = None
    """What the stems of validity masks end in instead of `label_suffix`; they lie beside the depth maps."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        found = self.match(self.depths, place, name, self.mask_suffix)
        _check_masks(found, self.label_suffix, self.mask_suffix, name)
        return _DepthDataset(name, self, found)

    def load(self, file: Path) -> Depth:
        """One depth map of this source, its validity mask applied. Raises UserError."""
        depth = read_depth(file, self.unit, self.invalid, self.maximum)
        mask = _read_mask(file, self.label_suffix, self.mask_suffix, depth.valid.shape)
        if mask is None:
            return depth
        valid = depth.valid & mask
        return Depth(np.where(valid, depth.metres, np.float32(0)), valid, depth.odd)


def _beside(label: Path, label_suffix: str, mask_suffix: str) -> Path | None:
    stem = label.stem[: len(label.stem) - len(label_suffix)] + mask_suffix
    return next((file for suffix in sorted(MAPS) if (file := label.with_name(stem + suffix)).is_file()), None)


def _check_masks(found: Found, label_suffix: str, mask_suffix: str | None, name: str) -> None:
    """Raise UserError where a label file lacks its stated validity mask."""
    if mask_suffix is None:
        return
    labels = [found.folder / label for label in found.labels if label is not None]
    if missing := [file for file in labels if _beside(file, label_suffix, mask_suffix) is None]:
        raise UserError(
            f"source '{name}': label files have no validity mask",
            file=found.folder,
            field="mask_suffix",
            value=several(missing),
            fix="check `mask_suffix`, or leave it out",
        )


def _read_mask(label: Path, label_suffix: str, mask_suffix: str | None, shape: Sequence[int]) -> Bools | None:
    """The validity mask beside a label file of `shape`, None where none is stated. Raises UserError: another size."""
    file = None if mask_suffix is None else _beside(label, label_suffix, mask_suffix)
    if file is None:
        return None
    mask = read_valid(file)
    if mask.shape != tuple(shape):
        raise UserError("the validity mask is of another size than its label", file=file, value=mask.shape)
    return mask


class _DepthDataset(PairDataset):
    def __init__(self, name: str, source: DepthPairs, found: Found) -> None:
        super().__init__(name, source.head, None, found)
        self._source = source

    def target(self, index: int) -> Field | None:
        """Depth in metres. Raises UserError: another size than the image; BadImage: no valid pixel at all."""
        file = self.label_file(index)
        if file is None:
            return None
        depth = self._source.load(file)
        self.check_size(index, depth.valid.shape, str(file), "the depth map")
        if not depth.valid.any():
            raise _nothing(file, "depth", "`unit`, `invalid` and `maximum`")
        return Field(torch.from_numpy(depth.metres), torch.from_numpy(depth.valid))

    def mended(self, index: int) -> list[Fault]:
        faults, file = super().mended(index), self.label_file(index)
        if file is not None and (odd := self._source.load(file).odd):
            problem = "depth that is NaN, infinite or not positive"
            faults.append(Fault(str(file), self.id(index), problem, "masked", "pixels", str(odd)))
        return faults


class NormalPairs(PairSource):
    """Images and surface normals: stored (RGB image with n = v / 127.5 - 1, or .npy [H,W,3]), or derived from depth
    maps and a pinhole camera. Normals are in camera axes x right, y down, z into the scene, and face the camera.

    DIODE: `images` and `normals` both its folder, `label_suffix: _normal`, `mask_suffix: _depth_mask`, `negate: yz`.
    Its tools do not say which way its axes point. They draw normals as colours without turning an axis, as one does
    where y is up and z towards the camera: hence "yz", which is a guess. `tutelage check` counts maps that mostly face
    away from the camera. Figures do not depend on it: a mirrored image mirrors x, whichever way the axes point.
    """

    format: Literal["normals"] = "normals"
    head: str
    normals: Path | None = None
    """The folder of stored normals."""
    negate: Annotated[str, Option(pattern="^x?y?z?$")] = ""
    """Axes to negate in stored normals: "yz" for files with y up and z towards the camera."""
    from_depth: bool = False
    """Derive them; `depths` and `camera` are needed then."""
    depths: Path | None = None
    unit: Annotated[float, Option(gt=0)] = 1.0
    """Metres for a stored 1 of the depth maps."""
    invalid: tuple[float, ...] = (0.0,)
    maximum: Annotated[float, Option(gt=0)] | None = None
    mask_suffix: str | None = None
    """What the stems of validity masks end in instead of `label_suffix`; they lie beside the maps."""
    camera: Path | Camera | None = None
    """fx, fy, cx, cy in pixels of the depth maps, or a JSON file that holds them."""
    window: Annotated[int, Option(ge=3, le=63)] = 9
    """Pixels of the side of the square that a plane is fitted to; odd."""

    @model_validator(mode="after")
    def _check_origin(self) -> NormalPairs:
        if self.from_depth and (self.depths is None or self.camera is None or self.normals is not None):
            raise ValueError("`from_depth` needs `depths` and `camera`, and no `normals`")
        if not self.from_depth and (self.normals is None or self.depths is not None):
            raise ValueError("give `normals`, or `from_depth: true` with `depths` and `camera`")
        if self.window % 2 == 0:
            raise ValueError("`window` must be odd")
        return self

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        if self.normals is not None:
            found = self.match(self.normals, place, name, self.mask_suffix)
            _check_masks(found, self.label_suffix, self.mask_suffix, name)
            return _NormalDataset(name, self, found)
        assert self.depths is not None
        camera = self.camera
        if isinstance(camera, Path):
            camera = Camera.read(existing(place.root / camera, "`camera`", name), name)
        assert camera is not None
        shared = {key: getattr(self, key) for key in DepthPairs.model_fields if key in type(self).model_fields}
        depth = DepthPairs(**{**shared, "format": "depth", "depths": self.depths})
        opened = depth.open(name, place)
        assert isinstance(opened, _DepthDataset)
        return _DerivedNormals(opened, camera, self.window)

    def load(self, file: Path) -> Normals:
        """One map of stored normals, its validity mask applied. Raises UserError."""
        normals = read_normals(file, self.negate)
        mask = _read_mask(file, self.label_suffix, self.mask_suffix, normals.valid.shape)
        if mask is None:
            return normals
        valid = normals.valid & mask
        return Normals(np.where(valid, normals.vectors, np.float32(0)), valid, normals.mended, normals.odd)


class _NormalDataset(PairDataset):
    def __init__(self, name: str, source: NormalPairs, found: Found) -> None:
        super().__init__(name, source.head, None, found)
        self._source = source

    def target(self, index: int) -> Vectors | None:
        """Unit normals. Raises UserError: another size than the image; BadImage: no valid pixel at all."""
        file = self.label_file(index)
        if file is None:
            return None
        normals = self._source.load(file)
        self.check_size(index, normals.valid.shape, str(file), "the map of normals")
        if not normals.valid.any():
            raise _nothing(file, "normal", "the files")
        return Vectors(torch.from_numpy(normals.vectors), torch.from_numpy(normals.valid))

    def mended(self, index: int) -> list[Fault]:
        faults, file = super().mended(index), self.label_file(index)
        normals: Normals | None = None if file is None else self._source.load(file)
        if normals is not None and 2 * int((normals.vectors[2] > 0).sum()) > int(normals.valid.sum()):
            problem = "most normals face away from the camera: check `negate`"
            faults.append(Fault(str(file), self.id(index), problem, "counted", "normals"))
        for count, problem, outcome in (
            (normals.mended if normals else 0, "normals off unit length by more than 1%, renormalised", "converted"),
            (normals.odd if normals else 0, "normals that are no direction", "masked"),
        ):
            if count:
                faults.append(Fault(str(file), self.id(index), problem, outcome, "pixels", str(count)))
        return faults


class _DerivedNormals(Borrowed):
    """A depth dataset whose targets are the normals of its depth maps."""

    def __init__(self, depth: _DepthDataset, camera: Camera, window: int) -> None:
        super().__init__(depth)
        self._depth, self._camera, self._window = depth, camera, window

    def target(self, index: int) -> Vectors | None:
        """Unit normals. Raises as the depth does, and BadImage where no normal can be derived."""
        depth = self._depth.target(index)
        if depth is None:
            return None
        vectors, valid = normals_from_depth(depth.values.numpy(), depth.valid.numpy(), self._camera, self._window)
        if not valid.any():
            file = self._depth.label_file(index)
            raise _nothing(file, "normal", "`unit`, `camera` and `window`")
        return Vectors(torch.from_numpy(vectors), torch.from_numpy(valid))


def _nothing(file: Path | None, what: str, look: str) -> BadImage:
    """Such an image is set aside, not an error: depth cameras lose whole frames."""
    return BadImage(f"no valid {what} in the whole image ({file}); if many are so, check {look}")
