"""Segmentation by several processes: what they compute together is what one computes."""

import pytest
from mask_trees import camvid_tree
from safetensors.torch import load_file

from doubled import Doubled
from longtail import api
from longtail.files import read_json
from longtail.segmentation import run
from longtail.training.loop import StageRun
from longtail.training.stage_job import StageJob
from processes import in_processes

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = {"task": "segmentation", "method": "gml", "backbone": "test_resnet.r160_in1k", "pretrained": "none"}
RUN |= {"segmentation.width": 32, "segmentation.crop": [32, 32], "queue.capacity": 300, "batch_size": 4, "epochs": 5}
RUN |= {"queue.projection_dim": 8, "teacher.kind": "momentum", "loading.workers": 0, "device": "cpu", "quiet": True}
RUN |= {"checkpoint.every_seconds": 0.0, "segmentation.decoder": "unet"}  # dropout, which fpn has, draws by process


def train(mine, data, out, more):
    """Train in float64; return the last state's tensors."""
    real, deployable = run.build_mask_loader, StageRun.deployable

    def job(build_method, **rest):
        return StageJob(build_method=lambda: build_method().double(), **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_mask_loader", lambda *given, **named: Doubled(real(*given, **named)))
        patch.setattr(run, "StageJob", job)
        patch.setattr(StageRun, "deployable", lambda self: deployable(self).float())
        api.train(data, out=out, **{**RUN, **more})


def state_of(folder):
    return load_file(next((folder / "resume").glob("state-*")) / "state.safetensors")


def numbers(value):
    """Yield the numbers in what may be nested."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        yield from numbers(part) if isinstance(part, dict | list) else [-1.0 if part is None else part]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images with masks in CamVid's layout, a validation set among them."""
    folder = tmp_path_factory.mktemp("ranks") / "camvid"
    camvid_tree(folder)
    return folder


CASES = {
    "gml": {},
    "gml, accumulated, sharded": {"optimiser.accumulate": 2, "optimiser.shard": True, "optimiser.name": "adamw"},
    "vit, sharded": {
        "backbone": "test_vit.r160_in1k",
        "segmentation.decoder": "upernet",
        "optimiser.shard": True,
        "optimiser.name": "sgd",
    },
    "ocr": {"method": "cross_entropy", "segmentation.decoder": "ocr"},
    "region_rebalance": {"method": "region_rebalance"},
    "lovasz": {"method": "lovasz", "optimiser.sharpness": 0.05},
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c == "gml" else pytest.mark.check) for c in CASES])
def test_two_processes_leave_what_one_leaves(case, data, tmp_path):
    train(None, data, tmp_path / "one", CASES[case])
    found = in_processes(2, train, data, tmp_path / "two", CASES[case])
    assert [kind for kind, _ in found] == ["done"] * 2, found
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert one.keys() == two.keys()
    gaps = {}
    for name, value in one.items():
        if value.numel():  # relative to the largest number, where that is above 1: gradients of some layers are large
            gap = (value.double() - two[name].double()).abs().max()
            gaps[name] = float(gap / value.double().abs().max().clamp(min=1))
    worst = max(gaps, key=gaps.get)
    # timm brings embeddings of positions to the size of an image in float32.
    assert gaps[worst] < (1e-7 if case == "vit, sharded" else 1e-9), (worst, gaps[worst])
    figures = [read_json(tmp_path / name / "evaluation.json") for name in ("one", "two")]
    for name in ("miou", "iou", "test_pixels", "test_images", "boundary_f", "ece", "miou_interval"):
        assert list(numbers(figures[0][name])) == pytest.approx(list(numbers(figures[1][name]))), name
