"""RetinaNet: anchors, matching, losses and detections, each against a plain loop."""

import math

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou, nms, sigmoid_focal_loss

from tutelage.errors import UserError
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.tasks import TASKS, RetinaNet
from tutelage.tasks.anchors import EveryBoxMatched, assign, level_anchors
from tutelage.tasks.retinanet import best_of_each, focal_loss
from tutelage.tasks.task import Features, Frame, Widths, no_loss
from tutelage.training.checkpoint import load_model, save_model
from tutelage.types import Batch, Boxes, HeadBatch, stack

NAMES = ("cup", "ball", "cat")
SMALL = RetinaNet(classes=NAMES, anchor_scale=2, convs=1, channels=8)
SIZE = (64, 96)


def _features(rows: int, size: tuple[int, int] = SIZE, width: int = 8) -> Features:
    levels = [torch.randn(rows, width, -(-size[0] // s), -(-size[1] // s)) for s in (8, 16, 32, 64, 128)]
    return Features(None, levels, None, size)


def _boxes(n: int, ignore: float = 0.0, grid: float = 8) -> Boxes:
    """Random boxes, on a coarse grid so that they often meet and overlap anchors alike."""
    corner = (torch.rand(n, 2) * torch.tensor([SIZE[1] - 40.0, SIZE[0] - 40.0]) / grid).round() * grid
    side = 8 + (torch.rand(n, 2) * 32 / grid).round() * grid
    return Boxes.make(torch.cat([corner, corner + side], 1), torch.randint(0, 3, (n,)), None, torch.rand(n) < ignore)


IMAGES = {
    "one": [_boxes(1)],
    "batched": [_boxes(3), _boxes(0), _boxes(5, ignore=0.5)],
    "empty": [_boxes(0)],
    "empty batch": [_boxes(0), _boxes(0)],
    "all ignored": [Boxes.make([[0, 0, 96, 64]], [0], ignore=[True])],
}


# Anchors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (40, 72)])
def test_anchors_are_three_sizes_and_three_shapes_at_every_cell(size):
    wanted = []
    for stride in (8, 16, 32, 64, 128):
        for row in range(math.ceil(size[0] / stride)):
            for column in range(math.ceil(size[1] / stride)):
                for octave in (0, 1 / 3, 2 / 3):
                    for ratio in (1.0, 2.0, 0.5):
                        area = (4 * stride * 2**octave) ** 2
                        width, height = math.sqrt(area / ratio), math.sqrt(area * ratio)
                        x, y = (column + 0.5) * stride, (row + 0.5) * stride
                        wanted.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    output = RetinaNet(classes=NAMES, convs=0).head(Widths(4, 8))(_features(2, size))
    torch.testing.assert_close(output["anchors"], torch.tensor(wanted))
    assert output["logits"].shape == (2, len(wanted), 3)
    assert output["deltas"].shape == (2, len(wanted), 4)


def test_what_the_head_says_belongs_to_the_anchors_beside_it():
    """Cells are told apart by the only feature, shapes and classes by the biases."""
    head, features = SMALL.but(convs=0).head(Widths(4, 1)), _features(1, width=1)
    for level, stride in zip(features.pyramid, (8, 16, 32, 64, 128), strict=True):
        y, x = (torch.arange(n) + 0.5 for n in level.shape[2:])
        level[0, 0] = stride * (1000 * y[:, None] + x)
    for net in (head.classes, head.deltas):
        nn.init.zeros_(net.last.weight)
        nn.init.zeros_(net.last.bias)
        net.last.weight.data[:, 0, 1, 1] = 1
    with torch.no_grad():
        output = head(features)
        middle = (output["anchors"][:, :2] + output["anchors"][:, 2:]) / 2
        cell = (1000 * middle[:, 1] + middle[:, 0])[:, None]
        for name, net, outputs in (("logits", head.classes, 3), ("deltas", head.deltas, 4)):
            torch.testing.assert_close(output[name][0], cell.expand(-1, outputs))
            nn.init.zeros_(net.last.weight)
            net.last.bias.data = torch.arange(9.0 * outputs)
            number = (torch.arange(len(cell)) % 9)[:, None] * outputs + torch.arange(outputs)
            assert torch.equal(head(features)[name][0], number.float())


# Matching ---------------------------------------------------------------------------------------------------


def _iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _slow_labels(anchors: torch.Tensor, truth: Boxes, positive: float, negative: float) -> tuple[list[int], list[int]]:
    """Labels as `assign` gives them, and the box of each anchor (-1 for none), one anchor after the other."""
    boxes, classes = truth.boxes[~truth.ignore].tolist(), truth.classes[~truth.ignore].tolist()
    labels, owners = [], []
    for anchor in anchors.tolist():
        overlaps = [_iou(box, anchor) for box in boxes]
        best = max(overlaps, default=0.0)
        owner = overlaps.index(best) if best >= positive else -1
        labels.append(classes[owner] + 1 if owner >= 0 else 0 if best < negative else -1)
        owners.append(owner)
    taken = set()
    for number, box in enumerate(boxes):
        overlaps = [_iou(box, anchor) for anchor in anchors.tolist()]
        anchor = overlaps.index(max(overlaps))
        if max(overlaps) > 0 and anchor not in taken:
            labels[anchor], owners[anchor] = classes[number] + 1, number
            taken.add(anchor)
    for number, anchor in enumerate(anchors.tolist()):
        for crowd in truth.boxes[truth.ignore].tolist():
            wide, high = (
                min(anchor[2], crowd[2]) - max(anchor[0], crowd[0]),
                min(anchor[3], crowd[3]) - max(anchor[1], crowd[1]),
            )
            area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
            if labels[number] == 0 and max(wide, 0) * max(high, 0) >= area / 2:
                labels[number] = -1
    return labels, owners


@pytest.mark.parametrize("n", [0, 1, 2, 7])
@pytest.mark.parametrize("ignore", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("negative", [0.5, 0.4])
def test_matching_is_the_slow_one(n, ignore, negative):
    # Sides of powers of two, so that both compute the same overlaps to the last bit and ties are ties.
    level, truth = torch.zeros(1, 1, 8, 12), _boxes(n, ignore)
    anchors = torch.cat([level_anchors(level, 8, [8, 16], [1.0]), level_anchors(level[..., ::2, ::2], 16, [32], [1.0])])
    labels, matched = assign(EveryBoxMatched(0.5, negative), anchors, truth)
    wanted, owners = _slow_labels(anchors, truth, 0.5, negative)
    assert labels.tolist() == wanted
    real = truth.boxes[~truth.ignore]
    for number, owner in enumerate(owners):
        if wanted[number] > 0:
            assert torch.equal(matched[number], real[owner])
    if len(real):
        assert max(wanted) > 0


def test_every_box_keeps_its_best_anchor():
    # Anchor 1 overlaps both, the second more; the first box has no other and keeps it, as the authors' matching does.
    overlaps = torch.tensor([[0.0, 0.3, 0.0, 0.0], [0.0, 0.8, 0.9, 0.45], [0.0, 0.0, 0.0, 0.0]])
    assert EveryBoxMatched(0.5, 0.4)(overlaps).tolist() == [-1, 0, 1, -2]  # the third box overlaps nothing
    same = torch.tensor([[0.2, 0.6, 0.6], [0.2, 0.6, 0.6]])
    assert EveryBoxMatched(0.5, 0.5)(same).tolist() == [-1, 0, 0]
    low = torch.tensor([[0.3, 0.3], [0.3, 0.2]])
    assert EveryBoxMatched(0.5, 0.5)(low).tolist() == [0, -1]


# Losses -----------------------------------------------------------------------------------------------------


def _output(rows: int) -> dict[str, torch.Tensor]:
    """A head's output on anchors of two levels, in float64."""
    level = torch.zeros(1, 1, 4, 6)
    anchors = torch.cat(
        [level_anchors(level, 16, [16, 24], [1.0, 2.0]), level_anchors(level[..., :2, :3], 32, [48], [1.0])]
    )
    logits = (3 * torch.randn(rows, len(anchors), 3, dtype=torch.float64)).requires_grad_()
    deltas = (0.3 * torch.randn(rows, len(anchors), 4, dtype=torch.float64)).requires_grad_()
    return {"logits": logits, "deltas": deltas, "anchors": anchors.double()}


def _slow_loss(task: RetinaNet, output: dict[str, torch.Tensor], truths: list[Boxes]) -> torch.Tensor:
    """The loss of the batch, number by number, in float64."""
    total, positives = torch.zeros((), dtype=torch.float64), 0
    for row, truth in enumerate(truths):
        labels, owners = _slow_labels(output["anchors"], truth, task.positive_iou, task.negative_iou)
        real = truth.boxes[~truth.ignore].tolist()
        for a, label in enumerate(labels):
            for k in range(3 if label >= 0 else 0):
                p = 1 / (1 + torch.exp(-output["logits"][row, a, k]))
                right, weight = (p, task.focal_alpha) if label == k + 1 else (1 - p, 1 - task.focal_alpha)
                total = total - weight * (1 - right) ** task.focal_gamma * torch.log(right)
            if label > 0:
                positives += 1
                x1, y1, x2, y2 = output["anchors"][a].tolist()
                u1, v1, u2, v2 = real[owners[a]]
                goal = [(u1 + u2 - x1 - x2) / 2 / (x2 - x1), (v1 + v2 - y1 - y2) / 2 / (y2 - y1)]
                goal += [math.log((u2 - u1) / (x2 - x1)), math.log((v2 - v1) / (y2 - y1))]
                for said, wanted in zip(output["deltas"][row, a], goal, strict=True):
                    off, d = (said - wanted).abs(), task.huber_delta
                    total = total + task.box_weight / 4 * (off**2 / 2 if off <= d else d * (off - d / 2))
    return total / max(positives + 1, task.least_positives * len(truths))


@pytest.mark.parametrize("which", IMAGES)
@pytest.mark.parametrize(
    "task", [SMALL, SMALL.but(negative_iou=0.3, focal_gamma=2, focal_alpha=0.4, huber_delta=1, least_positives=9)]
)
def test_the_loss_is_the_slow_one(which, task):
    truths, output = IMAGES[which], _output(len(IMAGES[which]))
    targets = stack(truths).map(lambda t: t.double() if t.is_floating_point() else t)
    found = task.loss(output, targets)
    assert float(found.count) == len(truths) == float(task.count(stack(truths)))
    wanted = _slow_loss(task, output, truths)
    leaves = (output["logits"], output["deltas"])
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    mine = torch.autograd.grad(found.sum / found.count, leaves)
    theirs = torch.autograd.grad(wanted, leaves, allow_unused=True) if wanted.requires_grad else zeros
    torch.testing.assert_close((found.sum / found.count).detach(), wanted.detach(), rtol=1e-6, atol=0)
    for a, b, zero in zip(mine, theirs, zeros, strict=True):
        torch.testing.assert_close(a, zero if b is None else b, rtol=1e-6, atol=1e-12)


def test_the_focal_loss_is_torchvisions_where_that_one_holds():
    logits, labels = torch.randn(2, 7, 3) * 4, torch.randint(0, 4, (2, 7))
    one_hot = torch.zeros(2, 7, 4).scatter_(2, labels[..., None], 1)[..., 1:]
    for alpha, gamma in ((0.25, 1.5), (0.5, 2.0), (0.1, 1.0)):
        wanted = sigmoid_focal_loss(logits, one_hot, alpha, gamma, "sum")
        torch.testing.assert_close(focal_loss(logits, labels, alpha, gamma), wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5])
def test_the_focal_loss_is_finite_for_every_finite_logit(gamma):
    logits = torch.tensor([[[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4], [-100.0, 100.0, 20.0]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[1, 2, 0]]), 0.25, gamma)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    right = [[1e4, -1e4, -1e4]]
    assert float(focal_loss(torch.tensor([right]), torch.tensor([[1]]), 0.25, gamma)) == 0


@pytest.mark.parametrize("which", IMAGES)
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_finite_and_reach_every_weight(which, autocast):
    head, targets = SMALL.head(Widths(4, 8)), stack(IMAGES[which])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = head(_features(len(IMAGES[which])), targets)
        loss = SMALL.loss(output, targets)
    assert output["logits"].dtype == output["deltas"].dtype == loss.sum.dtype == torch.float32
    assert loss.sum.isfinite()
    loss.sum.backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in head.parameters())
    boxes = any((~truth.ignore).any() for truth in IMAGES[which])
    assert (float(head.deltas.last.weight.grad.abs().sum()) > 0) == boxes
    assert float(head.classes.hidden[0].weight.grad.abs().sum()) > 0


def test_a_loss_without_boxes_is_of_ordinary_size():
    """At the start, and however many images there are; with boxes it is what the authors divide by, P + 1."""
    head = SMALL.head(Widths(4, 8))
    output = head(_features(8))
    each = {}
    for name, truths in (("none", [_boxes(0)] * 8), ("some", [_boxes(3)] + [_boxes(0)] * 7), ("all", [_boxes(3)] * 8)):
        loss = SMALL.loss(output, stack(truths))
        each[name] = float(loss.sum.detach() / loss.count)
    assert 0 < each["none"] < each["some"]
    assert each["none"] < each["all"]
    alone = SMALL.loss({n: t if n == "anchors" else t[:1] for n, t in output.items()}, stack([_boxes(0)]))
    assert float(alone.sum.detach()) == pytest.approx(each["none"], rel=0.2)
    # The bias makes every class at every anchor as unlikely as `prior` says.
    assert float(output["logits"].detach().sigmoid().mean()) == pytest.approx(0.01, rel=0.3)


def test_a_head_without_a_label_gives_zero_in_the_graph():
    head = SMALL.head(Widths(4, 8))
    no_loss(head(_features(1), stack([Boxes.make([], [])]))).backward()
    assert all(float(w.grad.abs().sum()) == 0 for w in head.parameters())


# The network ------------------------------------------------------------------------------------------------


def test_levels_share_convolutions_and_have_norms_of_their_own():
    head = RetinaNet(classes=NAMES).head(Widths(4, 256))
    convs, norms = 2 * 4 * 9 * 256 * 256, 2 * 4 * 5 * 2 * 256
    last = (9 * 256 + 1) * 9 * (3 + 4)
    assert sum(w.numel() for w in head.parameters()) == convs + norms + last
    assert float(head.classes.hidden[3].weight.detach().std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_the_head_is_the_plain_stack(activation):
    task = SMALL.but(convs=2, activation=activation)
    head, features = task.head(Widths(4, 8)).eval(), _features(2)
    for norm in head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
    with torch.no_grad():
        output = head(features)
        for net, name in ((head.classes, "logits"), (head.deltas, "deltas")):
            said = []
            for number, level in enumerate(features.pyramid):
                for conv, norm in zip(net.hidden, net.norms[number], strict=True):
                    level = nn.functional.conv2d(level, conv.weight, padding=1)
                    level = level - norm.running_mean.view(1, -1, 1, 1)
                    level = level / (norm.running_var + norm.eps).sqrt().view(1, -1, 1, 1)
                    level = level * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
                    level = level.clamp(min=0) if activation == "relu" else level * level.sigmoid()
                level = nn.functional.conv2d(level, net.last.weight, net.last.bias, padding=1)
                said += [level[:, :, y, x] for y in range(level.shape[2]) for x in range(level.shape[3])]
            flat = torch.stack(said, 1).reshape(output[name].shape)
            torch.testing.assert_close(output[name], flat, atol=1e-5, rtol=1e-4)


def test_one_cell_of_one_image_is_normed_by_what_was_seen_before():
    head = SMALL.head(Widths(4, 8)).train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head(_features(1))  # P7 is one cell
    for name, value in head.state_dict().items():
        if "running" in name:
            assert torch.equal(value, before[name]) == (".norms.4." in name), name
    head(_features(2))
    assert not torch.equal(head.classes.norms[4][0].running_mean, before["classes.norms.4.0.running_mean"])


class _Eyes(nn.Module):
    """A pyramid of averaged pixels: enough to see where a bright square stands."""

    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, images):
        levels = [nn.functional.avg_pool2d(images, s, ceil_mode=True) for s in (8, 16, 32, 64, 128)]
        return Features(None, [self.widen(level).relu() for level in levels], None, (64, 64))


def test_it_learns_a_picture_by_heart_in_thirty_steps():
    task = SMALL.but(channels=16)
    eyes, head = _Eyes(), task.head(Widths(4, 16))
    optimiser = torch.optim.AdamW([*eyes.parameters(), *head.parameters()], 0.02)
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, 10:34, 24:50] = 1
    image[0, 1, 40:60, 3:20] = 1
    truth = Boxes.make([[24, 10, 50, 34], [3, 40, 20, 60]], [2, 0])
    for _ in range(30):
        loss = task.loss(head(eyes(image), stack([truth])), stack([truth]))
        optimiser.zero_grad()
        loss.sum.backward()
        optimiser.step()
    head.eval()
    with torch.inference_mode():
        (said,) = task.decode(head(eyes(image), None), [Frame(64, 64, 64, 64)], (64, 64))
    metric = task.metric()
    metric.update(said, truth)
    assert metric.compute()["AP50"] == pytest.approx(100)
    assert len(task.pseudo(said)) >= 2  # sure enough for pseudo labels


# Detections -------------------------------------------------------------------------------------------------


def _make_sure(head: nn.Module) -> None:
    """Weights that say something of everything."""
    for net, std in ((head.classes, 0.3), (head.deltas, 0.05)):
        nn.init.normal_(net.hidden[0].weight, std=0.1)
        nn.init.normal_(net.last.weight, std=std)


def _said(rows: int, size: tuple[int, int] = SIZE) -> dict[str, torch.Tensor]:
    """The output of a random head that is sure of some things, in evaluation."""
    head = SMALL.head(Widths(4, 8)).eval()
    _make_sure(head)
    with torch.no_grad():
        return head(_features(rows, size))


def _slow_detections(task: RetinaNet, output: dict[str, torch.Tensor], size: tuple[int, int]) -> list[list[tuple]]:
    """Class by class and image by image; entries (score, class, box), best first."""
    found = []
    for logits, deltas in zip(output["logits"], output["deltas"], strict=True):
        rows = []
        for k in range(3):
            scores, boxes = [], []
            for a in logits[:, k].argsort(descending=True, stable=True).tolist():
                score = 1 / (1 + math.exp(-float(logits[a, k])))
                if score <= task.score_floor or len(scores) == task.pre_nms:
                    break
                x1, y1, x2, y2 = output["anchors"][a].tolist()
                dx, dy, dw, dh = deltas[a].tolist()
                x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
                w, h = (x2 - x1) * math.exp(min(dw, math.log(62.5))), (y2 - y1) * math.exp(min(dh, math.log(62.5)))
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                box = [min(max(v, 0.0), float(size[1 - n % 2])) for n, v in enumerate(box)]
                scores.append(score)
                boxes.append(box)
            kept = [n for n, b in enumerate(boxes) if min(b[2] - b[0], b[3] - b[1]) >= 1e-2]
            boxes, scores = torch.tensor(boxes).reshape(-1, 4)[kept], torch.tensor(scores)[kept]
            rows += [(float(scores[n]), k, boxes[n].tolist()) for n in nms(boxes, scores, task.nms).tolist()]
        found.append(sorted(rows, key=lambda row: -row[0])[: task.detections])
    return found


@pytest.mark.parametrize("changes", [{}, {"pre_nms": 4}, {"score_floor": 0.2, "nms": 0.2}, {"detections": 3}])
def test_detections_are_the_slow_ones(changes):
    task, output = SMALL.but(**changes), _said(3)
    found = task.decode(output, [Frame(*SIZE, *SIZE)] * 3, SIZE)
    for boxes, wanted in zip(found, _slow_detections(task, output, SIZE), strict=True):
        assert len(boxes) == len(wanted) > 2
        torch.testing.assert_close(boxes.scores, torch.tensor([s for s, _, _ in wanted]))
        assert boxes.classes.tolist() == [k for _, k, _ in wanted]
        torch.testing.assert_close(boxes.boxes, torch.tensor([b for _, _, b in wanted]), atol=1e-3, rtol=1e-4)
        assert not boxes.ignore.any()


def test_soft_nms_weakens_what_nms_drops():
    output, frames = _said(2), [Frame(*SIZE, *SIZE)] * 2
    hard, soft = (task.decode(output, frames, SIZE) for task in (SMALL, SMALL.but(soft_nms=0.3)))
    for kept, weakened in zip(hard, soft, strict=True):
        assert torch.equal(kept.boxes[0], weakened.boxes[0])
        assert not torch.equal(kept.scores, weakened.scores)
        assert (weakened.scores.diff() <= 0).all()
        assert 1 < len(weakened) <= 100


def test_a_box_that_is_coded_is_found_again_in_the_original_image():
    """The true boxes' shifts, scored by overlap, are decoded to the true boxes, at any size of the original."""
    truths = [_boxes(4, grid=1), _boxes(0), Boxes.make([[1.5, 2, 30, 50]], [1])]
    output = SMALL.head(Widths(4, 8)).eval()(_features(3))
    anchors = output["anchors"]
    logits, deltas = torch.full_like(output["logits"], -10), torch.zeros_like(output["deltas"])
    for row, truth in enumerate(truths):
        labels, matched = assign(EveryBoxMatched(0.5, 0.5), anchors, truth)
        at = (labels > 0).nonzero()[:, 0]
        logits[row, at, labels[at] - 1] = 3.0
        side, goal = anchors[at, 2:] - anchors[at, :2], matched[at, 2:] - matched[at, :2]
        middle = (matched[at, 2:] + matched[at, :2] - anchors[at, 2:] - anchors[at, :2]) / 2
        deltas[row, at] = torch.cat([middle / side, (goal / side).log()], 1)
    frame = Frame(height=200, width=192, inner_height=SIZE[0], inner_width=SIZE[1])
    output |= {"logits": logits, "deltas": deltas}
    for found, truth in zip(SMALL.decode(output, [frame] * 3, SIZE), truths, strict=True):
        scaled = truth.boxes * torch.tensor([2.0, 200 / 64, 2.0, 200 / 64])
        assert len(found) <= len(truth)
        if len(truth):
            overlap = box_iou(scaled, found.boxes) * (truth.classes[:, None] == found.classes)
            assert (overlap.max(0).values > 0.999).all()
            lost = overlap.max(1).values < 0.999  # only by suppression: another of the class overlaps it
            same = (truth.classes[:, None] == truth.classes) & ~torch.eye(len(truth), dtype=torch.bool)
            assert (((box_iou(scaled, scaled) > 0.5) & same).any(1) | ~lost).all()


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (40, 72)])
def test_detection_runs_at_any_size(size):
    head = SMALL.but(score_floor=0.0).head(Widths(4, 8)).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = head.task.decode(head(_features(2, size), None), [Frame(*size, *size)] * 2, size)
    for boxes in found:
        assert len(boxes) == 100
        assert boxes.boxes.dtype == boxes.scores.dtype == torch.float32
        assert (boxes.boxes >= 0).all()
        assert (boxes.boxes <= torch.tensor([*size[::-1], *size[::-1]])).all()


def test_an_untrained_network_reports_nothing():
    head = SMALL.head(Widths(4, 8)).eval()
    with torch.no_grad():
        found = SMALL.decode(head(_features(2)), [Frame(*SIZE, *SIZE)] * 2, SIZE)
    assert [len(boxes) for boxes in found] == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("level", [0, 4])
def test_a_detector_that_fails_does_not_say_that_nothing_is_there(level, value):
    head, features, frames = SMALL.head(Widths(4, 8)).eval(), _features(3), [Frame(*SIZE, *SIZE)] * 3
    _make_sure(head)
    with torch.no_grad():
        for net in (head.classes, head.deltas):
            net.hidden[0].weight.abs_().neg_()  # what is infinite is hidden by the ReLU
        fine = SMALL.decode(head(features), frames, SIZE)
        features.pyramid[level][1, 3, 0, 0] = value
        found = SMALL.decode(head(features), frames, SIZE)
        head.classes.last.bias[1] = math.nan
        broken = SMALL.decode(head(features), frames, SIZE)
    assert found[1].scores.isnan().tolist() == [True]
    assert found[1].boxes.tolist() == [[0, 0, 96, 64]]
    for row in (0, 2):
        assert len(fine[row]) > 0
        assert torch.equal(found[row].boxes, fine[row].boxes)
    assert [boxes.scores.isnan().tolist() for boxes in broken] == [[True]] * 3


def test_the_best_of_each_group_are_the_slow_ones():
    group, score = torch.randint(0, 5, (60,)), (torch.rand(60) * 8).round() / 8
    wanted = []
    for number in range(5):
        rows = [n for n in range(60) if group[n] == number]
        wanted += sorted(rows, key=lambda n: (-float(score[n]), n))[:4]
    assert best_of_each(group, score, 4).tolist() == wanted
    assert best_of_each(group[:0], score[:0], 4).tolist() == []


# In the program ---------------------------------------------------------------------------------------------


def test_it_is_a_task_of_recipes():
    assert RetinaNet in TASKS
    task = parse(RetinaNet, {"task": "retinanet", "soft_nms": 0.3, "pseudo_threshold": {"cup": 0.7}})
    assert parse(RetinaNet, task.plain()) == task
    with pytest.raises(UserError, match="negative_iou"):
        SMALL.but(negative_iou=0.6)
    with pytest.raises(UserError, match="'cupp', did you mean 'cup'"):
        SMALL.but(pseudo_threshold={"cupp": 0.7})
    with pytest.raises(UserError, match="greater than 0"):
        SMALL.but(anchor_ratios=(1.0, 0.0))


def test_in_a_student_it_learns_is_saved_and_says_the_same_again(tmp_path):
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
    model = Model(backbone=backbone, pyramid=Pyramid(width=8), size=64)
    student = model.build({"things": SMALL.but(score_floor=0.01), "others": SMALL}).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    labelled = HeadBatch(torch.tensor([1]), stack([Boxes.make([[8, 8, 40, 40]], [1])]))
    nothing = HeadBatch(torch.tensor([], dtype=torch.int64), None)
    losses = student(Batch(images, {"things": labelled, "others": nothing}, ["a", "b"]))
    assert [float(losses[name].count) for name in ("things", "others")] == [1, 0]
    assert float(losses["others"].sum.detach()) == 0
    torch.stack([loss.sum for loss in losses.values()]).sum().backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in student.parameters())
    assert all(float(w.grad.abs().sum()) == 0 for w in student.heads["others"].parameters())
    student.eval()
    save_model(tmp_path, student, {})
    again = load_model(tmp_path).student
    frames = [Frame(64, 64, 64, 64)] * 2
    for one, other in zip(
        student.predict(images, frames)["things"], again.predict(images, frames)["things"], strict=True
    ):
        assert len(one) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
