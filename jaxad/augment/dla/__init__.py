"""The views and the dynamic local augmentation of DLA (Yoa et al. 2021)."""

from jaxad.runtime import lazy

__all__, __getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "local": (
            "LOCAL",
            "Local",
            "LocalOptions",
            "grey",
            "jitter",
            "local_augmentation",
            "permute",
            "random_jitter",
            "random_local_augmentation",
            "random_permute",
            "random_rotate",
            "rotate",
            "sample_region",
        ),
        "views": (
            "Crop",
            "View",
            "ViewOptions",
            "random_view",
            "random_view_pair",
            "sample_view",
            "view",
            "view_pair",
        ),
    },
)
