"""A loss of pairs: a query's own item is to score higher than each of its negatives."""

from torch import Tensor
from torch.nn.functional import softplus

from twotower.losses.dense import DenseLoss
from twotower.losses.scores import Scores


class BPRLoss(DenseLoss):
    """Bayesian personalised ranking: each pair is a match of two, which the own item is to win.

    The loss of a query, in nats, is the mean over negatives of
    ``-log sigmoid((<query, own> - <query, negative>) / temperature)``. The mean is over the whole
    catalogue, estimated by weighing each candidate with ``1 / q``. Most of the catalogue is beaten
    early, and its share of the gradient goes with it: prefer softmax where the first ranks count.

    Source: Rendle et al., UAI 2009, section 4.1 (BPR-Opt). Differs: many negatives a positive; a
        temperature; no penalty on parameters, which is the optimizer's weight decay.
    """

    name = "bpr"

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        behind = (scores.dots - scores.own[:, None]) / temperature  # (B, n)
        return (softplus(behind) * scores.negative_shares()).sum(1)
