"""What ``auto`` means for the loss and its negatives, and which combinations are refused."""

from twotower.caller import passing
from twotower.data.dataset import Dataset
from twotower.errors import ConfigError
from twotower.losses.from_settings import ranks_before_labels
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.training import choices_of_examples
from twotower.training.settings import Choices


def choose_loss(choices: Choices, dataset: Dataset, num_items: int, *, encodes_items: bool) -> None:
    """Decide the loss and its negatives.

    Args:
        choices: With the towers and the examples decided.
        dataset: The split data set.
        num_items: Most items that are candidates at once.
        encodes_items: Whether a column of the items is a sentence whose encoder is trained.

    Raises:
        ConfigError: The loss, the negatives and the data do not go together.
    """
    if choices.config.loss.kind == "auto":
        choices.decide("loss.kind", "softmax", "it trains the ranking that is asked for")
    config = choices.config
    loss, examples = config.loss, config.training.examples
    spec = LOSSES[loss.kind]
    if loss.negatives == "auto":
        num_tokens = choices_of_examples.tokens_of_items(config, dataset.items)
        num_tokens = num_tokens * num_items // max(1, len(dataset.items))
        is_long = num_tokens > choices_of_examples.ALL_TOKENS_UP_TO
        many = f"{num_items:,} {'texts' if encodes_items else 'items'} are too many for all"
        if is_long and num_items <= choices_of_examples.ALL_ITEMS_UP_TO:
            many = (
                f"{num_items:,} items have {num_tokens:,} tokens, too many to encode in each step"
            )
        takes_batch = not spec.negatives or "in-batch" in spec.negatives
        if encodes_items and takes_batch and examples == "pairs":
            reason = "each other negative would be one text more to encode in each step"
            negatives = "in-batch"
        elif not spec.ranks_all:
            negatives, reason = "uniform", "sampled negatives for a loss of pairs"
        elif examples == "sets":
            negatives, reason = "all", "one row of scores does for all items that a query wants"
        elif num_items <= choices_of_examples.ALL_ITEMS_UP_TO and not is_long and not encodes_items:
            negatives, reason = "all", f"{num_items:,} items are few enough"
        elif examples == "prefixes" and loss.frequencies == "counts":
            # A batch brings a history's own items for sure, which its log_q does not know.
            negatives, reason = "popularity", f"{many}, and a batch is of few histories"
        else:
            negatives, reason = "mixed", many
        choices.decide("loss.negatives", negatives, reason)
        loss = choices.config.loss
    sampler = SAMPLERS[loss.negatives]
    if loss.num_negatives is None:
        num, why = sampler.num, ""
        if encodes_items and (sampler.draws or ranks_before_labels(loss)):
            num, why = sampler.num_of_texts, "each is one text more to encode in each step"
        choices.decide("loss.num_negatives", num, why)
    if sampler.needs == "impressions" and dataset.interactions.impressions is None:
        raise ConfigError(
            f"loss.negatives = {sampler.name!r} must go with a column of what was shown, got none; "
            f"pass {passing(impressions_column='NAME')}."
        )
    if sampler.counts_only and loss.frequencies == "stream":
        raise ConfigError(
            f"loss.frequencies must be 'counts' for {sampler.name}, which draws by counts, got 'stream'."
        )
    if sampler.has_stored and not spec.takes_stored:
        able = " and ".join(LOSSES.where(lambda each: each.takes_stored))
        raise ConfigError(
            f"loss.negatives must not be {sampler.name!r} for "
            f"{loss.kind}: only {able} makes up for the gradients that remembered items do not get; "
            f"use loss.kind = {able!r} or other negatives."
        )
    if spec.negatives and sampler.name not in spec.negatives:
        raise ConfigError(
            f"loss.negatives must be {' or '.join(map(repr, spec.negatives))} for {spec.name}, "
            f"{spec.negatives_reason}, got {loss.negatives!r}."
        )
    if loss.label_smoothing and "label_smoothing" not in spec.arguments:
        able = " and ".join(LOSSES.where(lambda each: "label_smoothing" in each.arguments))
        raise ConfigError(
            f"loss.label_smoothing must be 0 for {loss.kind}, got {loss.label_smoothing:g}; it is for "
            f"{able}."
        )
    if sampler.needs == "labels" and dataset.interactions.labels is None:
        raise ConfigError(
            f"loss.negatives = {sampler.name!r} must go with a column of 0/1 labels, got none; "
            f"pass {passing(label_column='NAME')}, or state a data.positive_threshold."
        )
    is_set = examples == "sets"  # in which what is asked for again is not in the history
    if loss.mask_known and dataset.repeats and config.towers.history != "none" and not is_set:
        choices.decide("loss.mask_known", value=False, why="items may come again")
    elif loss.mask_known and dataset.views:
        why = "who is new to a view has nothing there to leave out"
        choices.decide("loss.mask_known", value=False, why=why)
