"""The folder that `ditflow comfyui install` writes to ComfyUI: it takes the nodes from the package."""

import sys

try:
    from ditflow.comfyui.extension import comfy_entrypoint
except ModuleNotFoundError as error:
    if error.name != "ditflow":
        raise
    raise ImportError(
        f"ditflow is not installed in ComfyUI's Python: install it with {sys.executable} -m pip, and start "
        "ComfyUI again"
    ) from None

__all__ = ["comfy_entrypoint"]
