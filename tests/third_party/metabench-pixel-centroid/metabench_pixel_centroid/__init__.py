"""A plugin with one algorithm; the class is imported when somebody uses it."""

from metabench import Lazy, hookimpl


@hookimpl
def metabench_register_algorithms():
    return [
        Lazy(
            "pixel-centroid",
            "metabench_pixel_centroid.algorithm:PixelCentroid",
            family="metric",
            inference="inductive",
            reference="Tibshirani et al. 2002, doi:10.1073/pnas.082099299",
            summary="Nearest class mean on flattened, scaled pixels; nothing is trained.",
        )
    ]
