"""CogVideoX's frame rule: which video frames each latent frame stands for."""

GROUP = 4  # video frames per latent frame


def encoded_frames(frames: int) -> int:
    """How many frames to encode so that at least `frames` come back: as many, or up to three more.

    The autoencoder works in groups of eight frames. If 2 to 4 frames are left over, decoding returns only one
    of them; if 5 to 7 are left over, it returns eight.
    """
    beyond = frames % 8
    return frames + 5 - beyond if beyond in (2, 3, 4) else frames


def latent_spans(frames: int) -> list[range]:
    """The encoded frames of each latent frame: groups of four; the first one also covers the rest."""
    length = encoded_frames(frames)
    later = range(length - (length - 1) // GROUP * GROUP, length, GROUP)
    return [range(later.start), *(range(first, first + GROUP) for first in later)]
