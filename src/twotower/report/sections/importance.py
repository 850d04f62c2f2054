"""What the model reads: what its answers lose without each part of it."""

from collections.abc import Sequence

from markupsafe import Markup

from twotower.doctor.model_features import METRIC, Loss
from twotower.report.charts import Dot, dot_plot
from twotower.report.figures_reader import ends, number
from twotower.report.sections.methods import in_two_widths
from twotower.report.wording import Say, metric_name
from twotower.serving.titles import clean

MAX_SHOWN = 30
_MAX_LABEL = 40


def importance_chart(losses: Sequence[Loss], say: Say) -> Markup | None:
    """Return the plot of what is lost by each part, the largest first; None without any."""
    if not losses:
        return None
    ordered = sorted(losses, key=lambda loss: -loss.drop.value)[:MAX_SHOWN]
    dots = []
    for loss in ordered:
        name = _name(loss.name, say)
        value, low, high = loss.drop.as_json()
        tip = f"{name}: {number(value, 4)} ({ends(low, high, 4)})"
        dots.append(Dot(name, value, low, high, tip, is_model=True))
    metric = metric_name(say, METRIC)
    label = say("importance_chart", metric=metric, values="; ".join(dot.tip for dot in dots))
    title = say("importance_x", metric=metric)
    return in_two_widths(label, dot_plot, dots, reference=0.0, title=title)


def _name(path: str, say: Say) -> str:
    side, _, column = path.partition(".")
    if not column:
        return say("history")
    return say("by_column", side=say(f"side_{side}"), column=clean(column, _MAX_LABEL))
