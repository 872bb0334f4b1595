"""Jobs as job files have them."""

from tiny_pipelines import quick_settings

from ditflow.settings.values import plain


def values(clip, model, **changes):
    settings = quick_settings(clip, model, **changes)
    names = vars(quick_settings(clip, model))
    return {name: plain(getattr(settings, name)) for name in names if name != "output"}
