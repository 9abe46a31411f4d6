"""The stages between a user's history and a metric, in the order in which a porter takes them."""

from ref.golden.stages import decoding, loss, metrics, model, prompts, search

_IN_ORDER = (
    prompts.STAGE,
    model.STAGE,
    decoding.STAGE,
    loss.STAGE,
    search.STAGE,
    metrics.STAGE,
)
STAGES = {stage.name: stage for stage in _IN_ORDER}


def all_bugs():
    """The ids of all known bugs, in the order of the stages; a bug may show in several stages."""
    return list(dict.fromkeys(bug for stage in STAGES.values() for bug in stage.plants))
