"""HDR and wide-gamut pictures as a BT.709 screen shows them.

Light is relative to diffuse white, 203 cd/m2 (BT.2408). The steps: signal -> light (BT.2100 for PQ and HLG,
BT.1886 for SDR) -> BT.709 primaries (BT.2087) -> compressed highlights (HDR only) -> SDR signal (BT.1886).
"""

import numpy as np

WHITE = 203.0  # cd/m2
PEAK = 1000 / WHITE  # of the light that is kept apart: 1000 cd/m2, the nominal peak of HLG
KNEE = 0.8  # light up to here is not compressed
GAMMA = 2.4  # of an SDR screen
HLG_GAMMA = 1.2  # of a screen of 1000 cd/m2
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
ROWS = 128  # converted at a time, to bound memory


def pq_light(signal: np.ndarray) -> np.ndarray:
    """The light of a PQ signal of 0 to 1 (BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal ** (1 / m2)
    return (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * (10000 / WHITE)


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """The scene's light, 0 to 1, of an HLG signal of 0 to 1 (BT.2100, table 5)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def hlg_light(scene: np.ndarray) -> np.ndarray:  # [..., 3] BT.2020, of `hlg_scene`
    """The light that a screen of 1000 cd/m2 shows of the scene (BT.2100, table 5)."""
    luma = scene @ BT2020_LUMA
    return scene * (luma ** (HLG_GAMMA - 1) * PEAK)[..., None]


def compressed(light: np.ndarray) -> np.ndarray:  # [..., 3]
    """Bend light from KNEE to PEAK into KNEE to 1, the same for all channels to keep the hue.

    The curve (a Moebius transform) is smooth at the knee and straight below it.
    """
    largest = light.max(axis=-1, keepdims=True)
    a = KNEE**2 * (PEAK - 1) / (KNEE**2 - 2 * KNEE + PEAK)
    b = (KNEE**2 - 2 * KNEE * PEAK + PEAK) / (PEAK - 1)
    bent = (b**2 + 2 * b * KNEE + KNEE**2) / (b + a) * (largest - a) / (largest + b)
    return np.where(largest > KNEE, light * (bent / np.maximum(largest, KNEE)), light)


LIGHT = {"PQ": pq_light, "HLG": hlg_scene, "SDR": lambda signal: signal**GAMMA}  # of each level of a signal


def to_bt709(
    picture: np.ndarray,  # [height, width, 3] uint16 BT.2020, 65535 is the highest level
    transfer: str,  # a key of LIGHT
) -> np.ndarray:  # [height, width, 3] uint8
    levels = LIGHT[transfer](np.linspace(0, 1, 1 << 16)).astype(np.float32)
    shown = np.empty(picture.shape, np.uint8)
    for row in range(0, len(picture), ROWS):
        light = levels[picture[row : row + ROWS]]
        if transfer == "HLG":
            light = hlg_light(light)
        light = np.maximum(light @ BT2020_TO_BT709.T, 0)  # colours that BT.709 lacks become the nearest
        if transfer != "SDR":
            light = compressed(light)
        shown[row : row + ROWS] = np.rint(255 * np.minimum(light, 1) ** (1 / GAMMA))
    return shown
