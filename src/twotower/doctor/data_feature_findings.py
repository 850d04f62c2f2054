"""What the doctor can find in the columns of tables, in English and in Chinese."""

from twotower.doctor.findings import Kind, Text

CONSTANT = Kind(
    "constant-feature",
    en=Text(
        "The {side} column {column!r} has one value, {most}, in {value:.1%} of its rows.",
        "What is the same everywhere tells nothing apart, and often an export went wrong.",
        "Check where the column comes from; leave it out if it is meant to be so.",
    ),
    zh=Text(
        "{side_zh}列 {column!r} 有 {value:.1%} 的行是同一个值 {most}。",
        "处处相同的列不能区分任何东西，往往是导出出了错。",
        "检查该列的来源；如果本来如此，就去掉它。",
    ),
)

UNIQUE = Kind(
    "unique-feature",
    en=Text(
        "The {side} column {column!r} has a value of its own in {value:.1%} of its rows.",
        "A value that never comes twice is a second key: the model can learn it by heart and knows "
        "nothing of the next one.",
        "State its kind as 'shown' in [features.{side}], or group its values.",
    ),
    zh=Text(
        "{side_zh}列 {column!r} 有 {value:.1%} 的行取值各不相同。",
        "从不重复的值等于另一个主键：模型只能死记，对新值一无所知。",
        "在 [features.{side}] 中把它设为 'shown'，或把取值归组。",
    ),
)

MISSING = Kind(
    "mostly-missing-feature",
    en=Text(
        "The {side} column {column!r} is missing in {value:.1%} of the rows.",
        "Little can be learnt from it, and whether it is there may depend on what happened later.",
        "Find out why it is missing; fill it, or leave the column out.",
    ),
    zh=Text(
        "{side_zh}列 {column!r} 有 {value:.1%} 的行缺失。",
        "从中学不到多少东西，而且是否缺失可能取决于后来发生的事。",
        "查明缺失原因；补全，或去掉该列。",
    ),
)

LEAKING_QUERY = Kind(
    "leaking-query-feature",
    en=Text(
        "Test targets of queries with the same {column!r} have the same {label!r} {here:.1%} of the "
        "time, where what was known before lets {expected:.1%} be expected.",
        "The column knows something of the targets that the events before do not: it was probably "
        "made after the test events or from them, so the figures are too good.",
        "Make the column anew from what was known before each test event, or leave it out.",
    ),
    zh=Text(
        "{column!r} 相同的查询，其测试目标的 {label!r} 有 {here:.1%} 相同，"
        "而按此前已知的信息只应有 {expected:.1%}。",
        "该列掌握了此前事件中没有的、关于目标的信息：很可能是在测试事件之后、或由测试事件生成的，指标会偏高。",
        "只用每个测试事件之前已知的信息重新生成该列，或去掉它。",
    ),
)

HOLDS_TARGET = Kind(
    "feature-names-target",
    en=Text(
        "The query column {column!r} equals the target's {label!r} for {here:.1%} of the test events, "
        "and the item's for at most {expected:.1%} of the events before.",
        "The column holds the answer of the test, or a part of it: the figures are too good.",
        "Make the column anew from what was known before each test event, or leave it out.",
    ),
    zh=Text(
        "查询列 {column!r} 在 {here:.1%} 的测试事件中等于目标的 {label!r}，"
        "而在此前的事件中至多只有 {expected:.1%}。",
        "该列包含了测试的答案或其一部分：指标会偏高。",
        "只用每个测试事件之前已知的信息重新生成该列，或去掉它。",
    ),
)

LEAKING_ITEM = Kind(
    "leaking-item-feature",
    en=Text(
        "Among items with as many training events, the item column {column!r} goes with the number of "
        "test events: partial rank correlation {value:.2f}.",
        "It foretells the test better than the past does: it was probably counted over a time that "
        "includes the test, as a total of sales or views is.",
        "Count it over the training events only, or leave it out.",
    ),
    zh=Text(
        "在训练事件数相同的物品中，物品列 {column!r} 与测试事件数相关：偏秩相关 {value:.2f}。",
        "它对测试的预示强于过去的数据：统计时段很可能包含了测试，例如总销量或总浏览量。",
        "只用训练事件重新统计，或去掉该列。",
    ),
)

KNOWS_LABEL = Kind(
    "column-knows-label",
    en=Text(
        "The {side} column {column!r} alone tells positives from negatives: AUC {value:.3f}.",
        "A single column that is nearly always right is mostly known only after the event, such as "
        "seconds watched or an amount paid, or made from the label. {fed}",
        "Make sure that it is known before the answer is given; otherwise leave it out.",
    ),
    zh=Text(
        "仅凭{side_zh}列 {column!r} 就能分开正样本与负样本：AUC {value:.3f}。",
        "单独一列几乎总是正确，多半是事件之后才知道的（如观看时长、支付金额），或由标签生成。{fed_zh}",
        "确认它在给出答案之前就已知，否则去掉它。",
    ),
)
