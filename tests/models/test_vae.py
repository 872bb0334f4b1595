"""The autoencoder: frame counts, tiles that join to the right size, and the effect of tiles on a picture."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from ditflow.models.cogvideox.family import CogVideoXFamily
from ditflow.models.cogvideox.vae import OVERLAPS, CogVideoXAutoencoder
from ditflow.models.loading import ModelFolder

FAMILY = CogVideoXFamily()
TILES = FAMILY.tiles


@pytest.fixture(scope="module")
def vae(small_folder):
    return ModelFolder(str(small_folder), "float32", torch.device("cpu")).autoencoder()


def narrow_vae():
    """An autoencoder that compresses eight times, as the real one does, but has few channels."""
    network = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(2,) * 4,
        latent_channels=2,
        layers_per_block=1,
        norm_num_groups=1,
    )
    return CogVideoXAutoencoder(network)


def random_pixels(frames, height, width):
    return torch.randint(256, (frames, height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize("frames", [9, 10, 12, 13, 17, 20])
def test_decoding_gives_back_any_frame_count(vae, frames):
    clip = random_pixels(frames, 16, 32)
    encoded = vae.encode(clip)
    assert encoded.shape == (1, len(FAMILY.latent_spans(frames)), 8, 4, 8)
    assert vae.decode(encoded, frames, TILES[0]).shape == clip.shape


@torch.no_grad()
def test_frame_by_frame_conversion_equals_that_of_the_whole_video(vae):
    clip = random_pixels(12, 16, 32)
    video = torch.cat([clip, clip[-1:]]).permute(3, 0, 1, 2)[None]  # 12 frames would come back as 9
    network = vae.network
    latents = network.encode(video.float() / 127.5 - 1).latent_dist.mode() * network.config.scaling_factor
    encoded = vae.encode(clip)
    assert torch.equal(encoded, latents.transpose(1, 2))
    video = network.decode(latents / network.config.scaling_factor).sample[0, :, :12].permute(1, 2, 3, 0)
    decoded = vae.decode(encoded, 12, TILES[0])
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded.float(), ((video + 1) * 127.5).round().clamp(0, 255))


def test_every_tile_of_the_settings_has_an_overlap():
    assert tuple(OVERLAPS) == TILES


@pytest.mark.parametrize("tile", [*TILES, "none"])
def test_decode_tiles_join_to_the_right_size(tile):
    assert narrow_vae().decode(torch.zeros(1, 1, 2, 60, 90), 1, tile).shape == (1, 480, 720, 3)


@pytest.mark.parametrize("size", [(272, 384), (256, 576), (480, 720)], ids=str)
def test_encode_tiles_join_to_the_right_size(size):
    encoded = narrow_vae().encode(torch.zeros(1, *size, 3, dtype=torch.uint8))
    assert encoded.shape == (1, 1, 2, size[0] // 8, size[1] // 8)


@pytest.fixture(scope="module")
def picture(vae):
    """The latents of a smooth frame, and the frame they decode to as a whole."""
    colours = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(colours, size=(256, 384), mode="bicubic").clamp(0, 1)
    latents = vae.encode((smooth.permute(0, 2, 3, 1) * 255).to(torch.uint8))
    return latents, vae.decode(latents, 1, "none").float()


@pytest.mark.parametrize("tile", [TILES[0], TILES[-1]])
def test_tiles_show_the_same_picture(vae, picture, tile):
    """They differ only by the norms' statistics, to which random weights are especially sensitive."""
    latents, whole = picture
    difference = (vae.decode(latents, 1, tile).float() - whole).abs().mean()
    another = (whole.flip(2) - whole).abs().mean()
    assert 0 < difference < another / 4


def test_decode_tile_does_not_change_encoding(vae):
    clip = random_pixels(1, 128, 192)
    before = vae.encode(clip)
    vae.decode(before, 1, "144x96")
    assert torch.equal(vae.encode(clip), before)
