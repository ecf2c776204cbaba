"""The proxy tasks of CutPaste (Li et al. 2021): CutPaste, Scar, Cutout and the others of its tables."""

from jaxad.runtime import lazy

__all__, __getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "options": ("CutPasteOptions",),
        "cutpaste": (
            "Patch",
            "Scar",
            "paste_patch",
            "paste_patch_or_scar",
            "paste_scar",
            "random_paste_patch",
            "random_paste_patch_or_scar",
            "random_paste_scar",
            "sample_patch",
            "sample_scar",
        ),
        "cutout": (
            "confetti",
            "cutout_color",
            "cutout_grey",
            "cutout_mean",
            "random_confetti",
            "random_cutout_color",
            "random_cutout_grey",
            "random_cutout_mean",
            "random_scar",
            "scar",
        ),
        "proxy_tasks": ("PROXIES", "proxy_batch", "quarter_turns", "random_translate", "translate"),
    },
)
