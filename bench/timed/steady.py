"""A process whose times are like another's."""

import ctypes

import torch

THREADS = 1  # more of them wait for each other
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of the C library's malloc.h


def steady() -> None:
    """Compute on one thread and, with the GNU C library, give no memory back while this process lives.

    Otherwise the system hands out the pages of every large tensor anew, which takes as long as a pass and
    another time in every process.
    """
    torch.set_num_threads(THREADS)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
