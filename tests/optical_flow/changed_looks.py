"""Changes of the look of a video that keep its motion: [height, width, 3] uint8 to the same."""

import cv2
import numpy as np


def colour_map(frame):
    return cv2.applyColorMap(_grey(frame), cv2.COLORMAP_JET)


def cartoon(frame):
    """Flat colours with black outlines."""
    smooth = frame
    for _ in range(3):
        smooth = cv2.bilateralFilter(smooth, 9, 75, 75)
    method = cv2.ADAPTIVE_THRESH_MEAN_C
    lines = cv2.adaptiveThreshold(cv2.medianBlur(_grey(frame), 7), 255, method, cv2.THRESH_BINARY, 9, 2)
    return cv2.bitwise_and(smooth // 48 * 48 + 24, smooth // 48 * 48 + 24, mask=lines)


def edges(frame):
    return cv2.cvtColor(cv2.Canny(_grey(frame), 80, 160), cv2.COLOR_GRAY2RGB)


def noise(frame):
    added = np.random.default_rng(int(frame.sum())).normal(0, 25, frame.shape)
    return np.clip(frame + added, 0, 255).astype(np.uint8)


def pencil(frame):
    """Black and white, by the mean around each pixel."""
    smooth, method = cv2.GaussianBlur(_grey(frame), (0, 0), 1.5), cv2.ADAPTIVE_THRESH_GAUSSIAN_C
    lines = cv2.adaptiveThreshold(smooth, 255, method, cv2.THRESH_BINARY, 15, 3)
    return cv2.cvtColor(lines, cv2.COLOR_GRAY2RGB)


LOOKS = (colour_map, cartoon, edges, noise, pencil)


def _grey(frame):
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
