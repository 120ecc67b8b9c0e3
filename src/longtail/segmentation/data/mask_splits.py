"""Which images with masks train, test and validate, and how that is told."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longtail.data.keyed import derive_seed, keyed_bits
from longtail.data.splits import group_names, path_keys
from longtail.errors import UserError, counted
from longtail.option_groups import DataOptions
from longtail.segmentation.data.holding_out import hold_out_blocks, hold_out_images
from longtail.segmentation.data.mask_listing import MaskListing


def with_groups(listing: MaskListing, pattern: str | None) -> MaskListing:
    """Return the listing with the groups that ``--source.group_pattern`` finds in the paths, if it is given."""
    if pattern is None:
        return listing
    return replace(listing, groups=group_names(listing.images, pattern), frames=False)


def choose_test(listing: MaskListing, presence: Tensor, source: DataOptions) -> tuple[Tensor, str, tuple[str, ...]]:
    """Return which images test (bool ``[N]``), where that comes from in words, and notes.

    Args:
        listing: N pairs, with the groups that hold.
        presence: which classes each image holds, bool ``[N, C]``.
        source: how images are split.

    Raises:
        UserError: nothing can be held out.
    """
    if listing.splits is not None:
        is_test = torch.tensor([split == "test" for split in listing.splits], dtype=torch.bool)
        return is_test, listing.test_split, _torn(listing, is_test) if source.group_pattern else ()
    share = source.test_share
    if not 0 < share < 1:
        raise UserError(f"--source.test_share {share} must lie between 0 and 1, such as 0.2.")
    is_test = _held(listing, presence, share, derive_seed(source.split_seed, "test"))
    if not is_test.any():
        raise UserError(
            f"{listing.name}: nothing can be held out to test on without leaving a class untrained; add images, or "
            "give a test set with --source.test."
        )
    words = f"held out: {_share(listing, share)}, seed {source.split_seed}"
    note = (
        f"{listing.name}: no test split is given: {int(is_test.sum())} of {len(listing)} images are held out to test "
        f"on ({_share(listing, share)}; --source.test_share)"
    )
    if listing.groups is None:
        note += "; keep images of one scene, film or patient together with --source.group_pattern"
    return is_test, words, (f"{note}.",)


def choose_validation(
    listing: MaskListing, presence: Tensor, fraction: float, source: DataOptions
) -> tuple[Tensor, str, tuple[str, ...]]:
    """Return which training images validate (bool ``[N]``), in words how they were chosen, and notes.

    Raises:
        UserError: nothing can be held out.
    """
    held = _held(listing, presence, fraction, derive_seed(source.split_seed, "validation"))
    if not held.any():
        raise UserError(
            f"--val_fraction {fraction:g}: nothing can be held out of {listing.name} without leaving a class "
            "untrained; add images, or leave it out."
        )
    words = f"{_share(listing, fraction)}"
    note = (
        f"{listing.name}: {int(held.sum())} of {counted(len(listing), 'training image')} are held out for validation "
        f"({words}; --val_fraction)."
    )
    return held, f"held out: {words}, seed {source.split_seed}", (note,)


def _held(listing: MaskListing, presence: Tensor, share: float, seed: int) -> Tensor:
    bits = keyed_bits(seed, "masks", ids=path_keys(listing.images)).squeeze(1)
    if listing.frames and listing.groups is not None:
        return hold_out_blocks(presence, bits, share, listing.groups)
    return hold_out_images(presence, bits, share, listing.groups)


def _share(listing: MaskListing, share: float) -> str:
    """Return in words what is held out."""
    if listing.groups is None:
        return f"{100 * share:g} % of the images"
    groups = len(set(listing.groups))
    if listing.frames:
        films = counted(groups, "film")
        return f"a block of {100 * share:g} % of the frames of each of {films}, as neighbours are near copies"
    return f"about {100 * share:g} % of the images; {counted(groups, 'group')} kept whole"


def _torn(listing: MaskListing, is_test: Tensor) -> tuple[str, ...]:
    """Return a note on groups that lie on both sides of a split that was given."""
    groups = listing.groups or []
    sides = [{g for g, test in zip(groups, is_test.tolist(), strict=True) if test == side} for side in (False, True)]
    torn = sorted(sides[0] & sides[1])
    if not torn:
        return ()
    return (
        f"{listing.name}: {counted(len(torn), 'group lies', 'groups lie')} in both training and test set (first "
        f"{torn[0]!r}): figures flatter the model where images of a group are alike.",
    )
