"""What a training counts on its way, for its progress bar and its log."""

import math
import time
from dataclasses import dataclass

from ref.training import processes


@dataclass
class Step:
    """One step of the optimizer. num_predicted: what its loss is a mean over, in all processes.

    nats, tokens, dropped: of this process: summed loss, real tokens, items left out of prompts.
    """

    num_predicted: int
    nats: float = 0.0
    tokens: int = 0
    dropped: int = 0


class Tally:
    """What the steps of an epoch add up to.

    nats, predicted: lists, a number a step, summed over all processes. steps: the later steps, not
    summed yet, as this process alone counts them. dropped: items left out in the summed steps and
    in the epochs before. tokens: read in the summed steps since `began`, when this run began.
    """

    def __init__(self, nats=(), predicted=(), dropped=0):
        self.began = time.perf_counter()
        self.tokens = 0
        self.nats = list(nats)
        self.predicted = list(predicted)
        self.dropped = dropped
        self.steps = []

    @property
    def num_steps(self):
        """Steps of the epoch so far."""
        return len(self.nats) + len(self.steps)

    def begin_step(self, num_predicted):
        """A new step; what `add` counts from now on is its."""
        self.steps.append(Step(num_predicted))

    def add(self, share, nats):
        """Count a Share of the step, and its loss in nats."""
        if share.is_real:
            step = self.steps[-1]
            step.nats += nats
            step.tokens += share.batch.real_tokens
            step.dropped += share.batch.dropped

    def recent_loss(self):
        """Mean loss of the last steps of this process, at most 100.

        Only steps since the epoch began or a state was written count.
        """
        steps = self.steps[-100:]
        nats = sum(step.nats for step in steps)
        return processes.WORLD * nats / sum(step.num_predicted for step in steps)

    def sum_up(self, last_step):
        """Sum over all processes what each has counted. All of them have to call it.

        last_step: its number, for the error message.
        Raises ValueError for a loss that is not finite.
        """
        self.nats += processes.sums([step.nats for step in self.steps])
        if not math.isfinite(sum(self.nats)):
            raise ValueError(
                f"the training loss is {sum(self.nats)} at step {last_step}; try a smaller --lr"
            )
        self.predicted += [step.num_predicted for step in self.steps]
        self.tokens += sum(processes.sums([step.tokens for step in self.steps]))
        self.dropped += sum(processes.sums([step.dropped for step in self.steps]))
        self.steps = []

    def to_json(self):
        """What `Tally` takes to go on counting in another run; all has to be summed up."""
        return {"nats": self.nats, "predicted": self.predicted, "dropped": self.dropped}

    def end_epoch(self):
        """What a record says of the epoch, all summed up; the next one begins."""
        nats, predicted = self.nats, self.predicted
        self.nats, self.predicted = [], []
        return {
            "train": sum(nats) / sum(predicted),
            "tokens_per_second": round(self.tokens / (time.perf_counter() - self.began)),
            "dropped": self.dropped,
            "train_by_ten_steps": [
                sum(nats[i : i + 10]) / sum(predicted[i : i + 10]) for i in range(0, len(nats), 10)
            ],
        }
