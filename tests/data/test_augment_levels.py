"""Arithmetic on levels against the plain operations of torch that it stands in for."""

import pytest
import torch

from longtail.data.augment_levels import apply_table, choose, table_places, to_levels


def levels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_choose_is_where() -> None:
    one, other = levels(4, 3, 5, 6), levels(4, 3, 5, 6, seed=1)
    for shape in ((4, 3, 5, 6), (4, 1, 5, 6), (4, 1, 1, 1)):
        mask = levels(*shape, seed=2) > 127
        kept = one.clone(), other.clone(), mask.clone()
        assert torch.equal(choose(mask, one, other), torch.where(mask, one, other))
        assert torch.equal(choose(mask, 128, other), torch.where(mask, torch.tensor(128, dtype=torch.uint8), other))
        fill = torch.tensor([3, 250, 0], dtype=torch.uint8)[:, None, None]
        assert torch.equal(choose(mask, fill, other), torch.where(mask, fill, other))
        assert all(torch.equal(now, before) for now, before in zip((one, other, mask), kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_drop_the_fraction(dtype: torch.dtype) -> None:
    whole = torch.arange(256, dtype=dtype)
    assert to_levels(whole).tolist() == list(range(256))
    assert to_levels(torch.nextafter(whole[:-1] + 1, whole[:-1])).tolist() == list(range(255))


@pytest.mark.parametrize("tables", [1, 3])
def test_each_image_and_channel_has_its_table(tables: int) -> None:
    images, table = levels(5, 3, 4, 7), levels(5, tables, 256, seed=1)
    looked_up = apply_table(images, table)
    for b in range(5):
        for c in range(3):
            assert torch.equal(looked_up[b, c], table[b, c if tables == 3 else 0][images[b, c].long()])
    flat = table.expand(-1, 3, -1).reshape(-1)
    assert torch.equal(flat[table_places(images).long()], looked_up)
    # However the images lie in memory.
    laid_out = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_table(laid_out, table), looked_up)
