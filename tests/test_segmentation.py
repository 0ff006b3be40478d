"""Segmentation, and what the pixel tasks share, against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tutelage.errors import UserError
from tutelage.tasks import pixelwise
from tutelage.tasks.pixelwise import resized_back, subsample
from tutelage.tasks.segmentation import Look, MeanIoU, Segmentation, averaged_mask
from tutelage.tasks.task import Features, Frame, Widths, no_loss
from tutelage.types import Mask, stack

NAMES = ("road", "tree", "sky")


def _features(rows: int, side: int, width: int = 8) -> Features:
    cells = -(-side // 4)
    return Features(None, None, torch.randn(rows, width, cells, cells), (side, side))


def _ids(*shape: int) -> torch.Tensor:
    ids = torch.randint(0, 4, shape)
    return torch.where(ids == 3, 255, ids).to(torch.uint8)


@pytest.mark.parametrize("side", [4, 5, 6, 7, 8, 30])
def test_a_cell_has_the_label_of_the_pixel_at_its_centre(side):
    labels = torch.arange(side * side).view(1, side, side)
    cells = math.ceil(side / 4)
    rows = [math.floor((i + 0.5) * side / cells) for i in range(cells)]
    assert torch.equal(subsample(labels), labels[:, rows][:, :, rows])
    if side % 4 == 0:
        assert rows == list(range(2, side, 4))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("side", [32, 30])
def test_the_loss_is_summed_over_labelled_pixels(rows, side):
    task = Segmentation(classes=NAMES, channels=8)
    output = task.head(Widths(4, 8))(_features(rows, side), None).detach()
    targets = Mask(_ids(rows, side, side))
    loss = task.loss(output, targets)
    labels, expected, count = subsample(targets.ids), 0.0, 0
    for r in range(rows):
        for y in range(output.shape[2]):
            for x in range(output.shape[3]):
                if labels[r, y, x] != 255:
                    expected -= float(output[r, :, y, x].double().log_softmax(0)[int(labels[r, y, x])])
                    count += 1
    assert float(loss.sum) == pytest.approx(expected, rel=1e-5)
    assert float(loss.count) == count == float(task.count(targets))


def test_no_labelled_pixel_no_label_and_autocast():
    task = Segmentation(classes=NAMES)
    head = task.head(Widths(4, 8))
    for nothing in (True, False):
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = head(_features(2, 32), None)
            loss = task.loss(output, Mask(torch.full((2, 32, 32), 255, dtype=torch.uint8)))
        assert (float(loss.sum.detach()), float(loss.count), loss.sum.dtype) == (0, 0, torch.float32)
        (no_loss(output) if nothing else loss.sum).backward()
        assert all(float(w.grad.abs().sum()) == 0 for w in head.parameters())


def test_the_last_layer_starts_small():
    last = Segmentation(classes=NAMES).head(Widths(4, 256)).last
    assert float(last.weight.detach().std()) == pytest.approx(0.01, rel=0.2)


def test_the_way_back_is_the_bilinear_resize_where_nothing_was_padded():
    maps = torch.randn(3, 8, 12)
    back = resized_back(maps, Frame(32, 48, 32, 48), (32, 48))
    expected = F.interpolate(maps[None], size=(32, 48), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(back, expected, atol=1e-5)
    large = resized_back(maps, Frame(77, 101, 32, 48), (32, 48))
    expected = F.interpolate(maps[None], size=(77, 101), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(large, expected, atol=1e-5)


def test_the_padding_is_not_looked_at(monkeypatch):
    maps = torch.randn(3, 16, 16)
    frame = Frame(50, 100, 32, 64)
    clean = resized_back(maps, frame, (64, 64))
    alone = F.interpolate(maps[None, :, :8], size=(50, 100), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(clean, alone, atol=1e-5)
    maps[:, 8:] = math.nan
    assert torch.equal(resized_back(torch.nan_to_num(maps, nan=1e4), frame, (64, 64)), clean)
    monkeypatch.setattr(pixelwise, "_STRIP", 900)  # three rows of 3 x 100 numbers at a time
    assert torch.allclose(resized_back(torch.nan_to_num(maps), frame, (64, 64)), clean, atol=1e-6)


def test_a_prediction_has_the_size_of_each_original():
    task = Segmentation(classes=NAMES)
    output = torch.randn(3, 3, 8, 8) * 3
    frames = [Frame(100, 50, 32, 16), Frame(7, 9, 25, 32), Frame(1, 1, 32, 32)]
    for logits, frame, said in zip(output, frames, task.decode(output, frames, (32, 32)), strict=True):
        probs = resized_back(logits, frame, (32, 32)).softmax(0)
        assert said.ids.shape == said.confidence.shape == (frame.height, frame.width)
        assert said.ids.dtype == said.confidence.dtype == torch.uint8
        assert torch.equal(said.ids.long(), probs.argmax(0))
        assert float((said.confidence - 255 * probs.amax(0)).abs().max()) <= 0.51


@pytest.mark.parametrize("cells", [(1, 1), (6, 4), (32, 48), (64, 96), (5, 7)])
@pytest.mark.parametrize("original", [(32, 48), (77, 101), (9, 13)])
def test_maps_of_any_resolution_find_their_way_back(cells, original):
    maps = torch.randn(3, *cells)
    back = resized_back(maps, Frame(*original, 32, 48), (32, 48))
    expected = F.interpolate(maps[None], size=original, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(back, expected, atol=1e-4)


@pytest.mark.parametrize(("cells", "inside"), [(8, 4), (64, 33), (2, 1), (128, 66)])
def test_the_padding_is_not_looked_at_in_maps_of_any_resolution(cells, inside):
    """A 33 x 64 image in a 64 x 64 input: cells belong to the image where the pixel at their centre does."""
    maps = torch.randn(2, cells, cells)
    maps[:, inside:] = math.nan
    assert resized_back(maps, Frame(33, 64, 33, 64), (64, 64)).isfinite().all()


def _looks(original: tuple[int, int], classes: int, flip: bool) -> list[Look]:
    """Looks at one image at several sizes, resolutions and number types; none shows padding."""
    looks = []
    for side, stride in ((32, 4), (48, 8), (64, 1)):
        frame, cells = Frame(*original, side, side), side // stride
        for flipped in (False, True) if flip else (False,):
            looks.append(Look(3 * torch.randn(classes, cells, cells), frame, (side, side), flipped))
    return looks


def _slow_average(looks: list[Look]) -> torch.Tensor:
    """Mean probabilities [K,h,w] in float64, from full maps."""
    every = []
    for look in looks:
        size = (look.frame.height, look.frame.width)
        full = F.interpolate(look.logits[None].double(), size=size, mode="bilinear", align_corners=False)[0]
        probs = full.softmax(0)
        every.append(torch.tensor(probs.numpy()[:, :, ::-1].copy()) if look.flipped else probs)
    return torch.stack(every).mean(0)


@pytest.mark.parametrize("strip", [2**23, 500])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("original", [(40, 50), (7, 90), (1, 1)])
def test_probabilities_are_averaged_over_looks(original, flip, strip, monkeypatch):
    monkeypatch.setattr(pixelwise, "_STRIP", strip)
    looks = _looks(original, 4, flip)
    for some in (looks[:1], looks[-1:], looks):
        mask, expected = averaged_mask(some), _slow_average(some)
        best = expected.topk(2, 0).values
        clear = best[0] - best[1] > 1e-5
        assert clear.float().mean() > 0.99
        assert torch.equal(mask.ids[clear].long(), expected.argmax(0)[clear])
        assert float((mask.confidence - 255 * expected.amax(0)).abs().max()) <= 0.501
        assert mask.ids.shape == original
        assert mask.ids.dtype == mask.confidence.dtype == torch.uint8


def test_a_mirrored_image_gives_the_mirrored_mask_exactly():
    looks = _looks((61, 83), 5, flip=True)
    mirrored = [look._replace(flipped=not look.flipped) for look in looks]
    mirrored = [look for pair in zip(mirrored[1::2], mirrored[::2], strict=True) for look in pair]
    one, other = averaged_mask(looks), averaged_mask(mirrored)
    assert torch.equal(one.ids, other.ids.flip(1))
    assert torch.equal(one.confidence, other.confidence.flip(1))
    assert (one.ids != one.ids.flip(1)).any()


def test_many_classes_at_full_size_stay_small_in_memory():
    """150 classes of 1000 x 1000 pixels are 600 MB a map of floats; strips need a fraction."""
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            largest = max(largest, found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    for height, width in ((300, 300), (20, 1000)):  # the second has fewer rows than the map
        look = Look(torch.zeros(150, 100, 100), Frame(height, width, 400, 400), (400, 400))
        with Watch():
            averaged_mask([look, look._replace(flipped=True)])
    assert 10**6 < largest <= 2**23


@pytest.mark.parametrize("where", [0, 1])
def test_one_look_of_nan_spoils_the_mask(where):
    looks = _looks((20, 30), 3, flip=True)[:2]
    looks[where].logits[1, 0, 0] = math.nan
    mask = averaged_mask(looks)
    assert (mask.ids == 255).all()
    assert (mask.confidence == 0).all()


def test_unsure_pixels_are_not_labelled():
    task = Segmentation(classes=NAMES)
    said = Mask(
        torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8), torch.tensor([[127, 128], [255, 0]], dtype=torch.uint8)
    )
    kept = task.pseudo(said)
    assert kept.ids.tolist() == [[255, 1], [2, 255]]
    assert torch.equal(kept.confidence, said.confidence)
    assert said.ids.tolist() == [[0, 1], [2, 0]]
    assert task.but(pseudo_threshold=0.0).pseudo(said).ids.tolist() == said.ids.tolist()
    assert task.pseudo(Mask(said.ids, torch.full((2, 2), 9, dtype=torch.uint8))) is None
    human = Mask(said.ids)
    assert task.pseudo(human) is human


def test_more_classes_than_a_byte_holds_are_refused():
    names = tuple(str(k) for k in range(256))
    assert Segmentation(classes=names[:255]).head(Widths(4, 4)).last.out_channels == 255
    with pytest.raises(UserError, match="too many classes"):
        Segmentation(classes=names).head(Widths(4, 4))


def test_miou_comes_from_one_confusion_matrix_over_the_set():
    metric = Segmentation(classes=(*NAMES, "car", "bike")).metric()  # nobody shows or says the bike
    predictions = [_ids(9, 7), _ids(4, 4), _ids(1, 5)]
    truths = [_ids(9, 7), _ids(4, 4), _ids(1, 5)]
    truths[0][0, 0] = 3  # a car that is never predicted: IoU 0, not left out
    for p, t in zip(predictions, truths, strict=True):
        metric.update(Mask(p), Mask(t))
    both, either, right, seen = [0] * 5, [0] * 5, 0, 0
    for p, t in zip(predictions, truths, strict=True):
        for a, b in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True):
            if b == 255:
                continue
            seen, right = seen + 1, right + (a == b)
            for k in range(5):
                both[k] += a == b == k
                either[k] += a == k or b == k
    ious = [i / u for i, u in zip(both, either, strict=True) if u]
    assert len(ious) == 4
    assert metric.compute() == {
        "mIoU": pytest.approx(100 * sum(ious) / 4),
        "pixel accuracy": pytest.approx(100 * right / seen),
    }


def test_the_metric_of_nothing_and_of_what_does_not_fit():
    metric = MeanIoU(3)
    metric.update(Mask(_ids(2, 2)), Mask(torch.full((2, 2), 255, dtype=torch.uint8)))
    assert math.isnan(metric.compute()["mIoU"])
    assert math.isnan(metric.compute()["pixel accuracy"])
    with pytest.raises(ValueError, match="the prediction is"):
        metric.update(Mask(_ids(2, 3)), Mask(_ids(3, 2)))
    one, none = Mask(torch.zeros(1, 1, dtype=torch.uint8)), Mask(torch.full((1, 1), 3, dtype=torch.uint8))
    for said, true in ((none, one), (one, none)):
        with pytest.raises(ValueError, match="class id"):
            metric.update(said, true)


@pytest.mark.parametrize("shape", [(40, 50), (128, 160)])
def test_a_drawing_has_the_size_of_the_image_and_shows_the_classes(shape):
    image = np.full((*shape, 3), 120, np.uint8)
    ids = torch.zeros(shape, dtype=torch.uint8)
    ids[:, : shape[1] // 2] = 1
    drawn = Segmentation(classes=NAMES).draw(image, Mask(ids))
    assert drawn.shape == image.shape
    assert (drawn[5, 5] != drawn[5, -5]).any()
    blank = Segmentation(classes=NAMES).draw(image, Mask(torch.full(shape, 255, dtype=torch.uint8)))
    assert (blank[..., 0] == blank[..., 1]).all()


def test_masks_stack_as_the_loss_wants_them():
    targets = stack([Mask(_ids(8, 8)), Mask(_ids(8, 8), _ids(8, 8))])
    assert targets.ids.shape == (2, 8, 8)
    assert targets.confidence is None
