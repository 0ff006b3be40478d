"""DeepLabv3 against torchvision's own, and in a network with other heads."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50

from tutelage.errors import UserError
from tutelage.models.backbone import Timm, Torchvision
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.tasks import Classification, DeepLab, Depth, Detection, Segmentation
from tutelage.tasks.task import Features, Frame, Widths, no_loss
from tutelage.training.checkpoint import load_model, load_shared, save_model
from tutelage.types import Batch, HeadBatch, Mask, stack

SMALL = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
MODEL = Model(backbone=SMALL, pyramid=Pyramid(width=8), size=64)
TASK = DeepLab(classes=("a", "b", "c"), channels=16)


def _masks(rows, side=64):
    """Left half of class 0, right half of class 1, a border that nobody labelled."""
    ids = torch.zeros(side, side, dtype=torch.uint8)
    ids[:, side // 2 :] = 1
    ids[:4] = 255
    return stack([Mask(ids)] * rows)


def _batch(rows, labelled):
    images = torch.randint(0, 256, (rows, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, :, :, 32:] //= 4
    targets = _masks(len(labelled)) if labelled else None
    heads = {"masks": HeadBatch(torch.tensor(labelled, dtype=torch.int64), targets)}
    return Batch(images, heads, [f"s/{i}" for i in range(rows)])


def _features(rows, width=8, side=64, stride=16):
    return Features(None, None, None, (side, side), torch.randn(rows, width, side // stride, side // stride))


def test_it_is_torchvisions_network_with_the_same_weights():
    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=False).eval()
    task = DeepLab(classes=("a", "b", "c"), output_stride=8)  # theirs has this stride, and rates of 12, 24 and 36
    student = Model(backbone=Torchvision(name="resnet50"), size=64).build({"masks": task}).eval()
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in theirs.parameters())
    student.backbone.net.load_state_dict(theirs.backbone.state_dict())
    student.heads["masks"].layers.load_state_dict(theirs.classifier.state_dict())
    images = torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8)
    with torch.no_grad():
        normal = (images / 255 - torch.tensor(student.model.mean).view(3, 1, 1)) / torch.tensor(student.model.std).view(
            3, 1, 1
        )
        features = student.features(images)
        found = student.heads["masks"](features, None)
        coarse = student.heads["masks"].layers(features.deepest)
        wanted = theirs(normal)["out"]
    assert features.deepest.shape == (1, 2048, 8, 6)
    assert features.pyramid is features.fused is None
    assert found.shape == (1, 3, 16, 12)
    torch.testing.assert_close(F.interpolate(coarse, (64, 48), mode="bilinear"), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, F.interpolate(coarse, (16, 12), mode="bilinear"))


@pytest.mark.parametrize(("stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_the_rates_belong_to_the_stride(stride, rates):
    pooling = DeepLab(classes=("a",), output_stride=stride).head(Widths(4, 8)).layers[0]
    assert tuple(branch[0].dilation[0] for branch in list(pooling.convs)[1:4]) == rates
    student = MODEL.build({"masks": TASK.but(output_stride=stride)}).eval()
    assert student.features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).deepest.shape[2:] == (64 // stride,) * 2
    assert student.pyramid is None


@pytest.mark.parametrize("side", [64, 50])
@pytest.mark.parametrize("rows", [1, 3])
def test_loss_of_one_row_of_several_and_of_none_that_is_labelled(rows, side):
    head = TASK.head(Widths(8, 4)).train()
    features = Features(None, None, None, (side, side), torch.randn(rows, 8, -(-side // 16), -(-side // 16)))
    output = head(features, None)
    assert output.shape == (rows, 3, -(-side // 4), -(-side // 4))
    loss = TASK.loss(output, _masks(rows, side))
    assert loss.sum > 0
    assert loss.count == TASK.count(_masks(rows, side))
    loss.sum.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    for nothing in (
        TASK.loss(head(features, None), Mask(torch.full((rows, side, side), 255, dtype=torch.uint8))).sum,
        no_loss(head(features, None)),
    ):
        head.zero_grad()
        nothing.backward()
        assert all(p.grad.abs().sum() == 0 for p in head.parameters())


def test_one_row_goes_by_the_statistics_of_those_before():
    torch.manual_seed(0)
    head = TASK.head(Widths(8, 4)).train()
    norm = head.layers[0].convs[-1][2]
    head(_features(4), None)
    before = norm.running_mean.clone()
    assert before.abs().sum() > 0
    head(_features(1), None)
    assert norm.running_mean.equal(before)
    head(_features(2), None)
    assert not norm.running_mean.equal(before)


def test_a_few_steps_learn_the_halves_of_an_image():
    torch.manual_seed(0)
    student = MODEL.build({"masks": TASK}).train()
    optimiser = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9)
    batch, losses = _batch(4, [0, 2, 3]), []
    for _ in range(15):
        loss = student(batch)["masks"]
        optimiser.zero_grad()
        (loss.sum / loss.count).backward()
        optimiser.step()
        losses.append(float(loss.sum.detach() / loss.count))
    assert losses[-1] < losses[0] / 3
    said = student.eval().predict(batch.images[:2], [Frame(64, 64, 64, 64), Frame(20, 30, 40, 60)])["masks"]
    assert said[0].ids.shape == (64, 64)
    assert said[1].ids.shape == (20, 30)
    assert (said[0].ids[:, 8:24] == 0).float().mean() > 0.9
    assert (said[0].ids[:, 40:56] == 1).float().mean() > 0.9


def test_a_batch_without_labels_keeps_every_weight_in_the_graph():
    student = MODEL.build({"masks": TASK}).train()
    loss = student(_batch(2, []))["masks"]
    loss.sum.backward()
    assert loss.count == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in student.parameters())


@pytest.mark.parametrize(
    "other", [Segmentation(classes=("a",)), Depth(), Detection(classes=("a",)), TASK.but(output_stride=8)]
)
def test_heads_that_want_another_backbone_are_refused(other):
    with pytest.raises(UserError, match="'masks' and 'other' cannot share a backbone"):
        MODEL.build({"masks": TASK, "other": other})


def test_classes_of_the_whole_image_share_the_network():
    student = MODEL.build({"masks": TASK, "label": Classification(classes=("x", "y"))}).eval()
    said = student.predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [Frame(64, 64, 64, 64)])
    assert said["label"][0].probs.shape == (2,)
    assert said["masks"][0].ids.shape == (64, 64)


def test_its_backbone_starts_from_a_network_with_a_pyramid_and_survives_its_files(tmp_path):
    torch.manual_seed(0)
    before = MODEL.build({"ground": Segmentation(classes=("a",))})
    save_model(tmp_path / "fpn", before, {})
    student = MODEL.build({"masks": TASK}).eval()
    load_shared(student, tmp_path / "fpn" / "weights.safetensors")
    assert all(student.backbone.state_dict()[name].equal(t) for name, t in before.backbone.state_dict().items())
    save_model(tmp_path / "deeplab", student, {})
    again = load_model(tmp_path / "deeplab").student
    assert again.tasks == {"masks": TASK}
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert again.features(images).deepest.equal(student.features(images).deepest)
    assert parse(DeepLab, TASK.plain()) == TASK


def test_too_many_classes_for_a_mask():
    with pytest.raises(UserError, match="too many classes"):
        DeepLab(classes=tuple(str(i) for i in range(256))).head(Widths(4, 4))
