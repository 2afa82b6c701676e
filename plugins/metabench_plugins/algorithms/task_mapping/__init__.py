"""Task to parameters: a network that maps a support set to a model, learnt by supervision."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "task-mapping",
        f"{__name__}.task_mapping:TaskMapping",
        family="task-mapping",
        inference="inductive",
        reference="Wang and Hebert 2016, doi:10.1007/978-3-319-46466-4_37",
        summary="A network maps a support set to a classifier, learnt from solved training tasks.",
    ),
)
