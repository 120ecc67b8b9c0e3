"""Methods of segmentation on real encoders with real decoders."""

import pytest
import torch
from pixel_scenes import batch_of, build, config_of, fetch_of, files_of, scenes

from longtail.errors import UserError
from longtail.segmentation.methods import get_dense_method
from longtail.segmentation.models import Segmenter

REAL = {"backbone": "test_resnet", "teacher__backbone": "test_resnet", "segmentation__width": 8}


@pytest.mark.parametrize("decoder", ["segformer", "ocr"])
def test_a_teacher_that_was_saved_and_its_student(decoder, tmp_path):
    masks = scenes().repeat_interleave(4, 1).repeat_interleave(4, 2)  # a cell of stride 4 is of one class
    files, options = files_of(masks), {**REAL, "segmentation__decoder": decoder}
    build("logit_adjustment", files, **options).classifier().save(tmp_path)
    teacher = Segmenter.load(tmp_path)
    get_dense_method("gml").check(config_of("gml", teacher__run=str(tmp_path), **options), files)
    with pytest.raises(UserError, match="teacher's classes"):
        get_dense_method("gml").check(config_of("gml", teacher__run=str(tmp_path), **options), files_of(masks, 5))
    method = build("gml", files, teacher, **options)
    method.prepare(fetch_of(masks), files.pixels)
    assert method.queue.filled.all()
    batch = batch_of(masks, [0, 1, 2])
    method.update_memory(batch)
    losses = method(batch, 0.0)
    assert set(losses) == {"classifier", "gml"} | ({"auxiliary"} if decoder == "ocr" else set())
    sum(losses.values()).backward()
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    # What is deployed predicts by the logits that the loss saw.
    method.eval()
    segmenter = method.classifier()
    assert segmenter.spec["regions"] == (4 if decoder == "ocr" else None)
    with torch.no_grad():
        seen = segmenter(batch.views["classifier"])
        again = method.loss(seen, batch.labels)
        torch.testing.assert_close(again, method(batch, 0.0)["classifier"])
