"""What the doctor can find in interactions and in their split, in English and in Chinese."""

from twotower.doctor.findings import Kind, Text

DUPLICATE_EVENTS = Kind(
    "duplicate-events",
    en=Text(
        "{value:.2%} of the events ({count:,}) are copies of another event with the same {key}; "
        "{in_test:.1%} of the test events have a copy outside the test.",
        "A copy counts twice in training, makes the data look like one with repeats, and where it "
        "stands on both sides of the split the answer is known before it is asked for.",
        "Find out where the copies come from, often a join or a file read twice, and remove them.",
    ),
    zh=Text(
        "{value:.2%} 的事件（{count:,} 条）与另一条事件的{key_zh}完全相同；"
        "{in_test:.1%} 的测试事件在测试集之外还有一份副本。",
        "副本在训练中被重复计算，会让数据看起来像允许重复消费；如果副本跨越了训练与测试，答案就提前泄露了。",
        "查明副本的来源（常见的是表连接或同一文件读了两次），然后去重。",
    ),
)

FILE_ORDER = Kind(
    "events-out-of-order",
    en=Text(
        "{value:.1%} of the events stand in the table before an earlier event of their query.",
        "{why}",
        "{do}",
    ),
    zh=Text(
        "{value:.1%} 的事件在表中排在同一查询的更早事件之前。",
        "{why_zh}",
        "{do_zh}",
    ),
)

TIED_TIMES = Kind(
    "tied-times",
    en=Text(
        "{value:.1%} of the events share their moment with another event of the same query.",
        "Among such events the order of the table decides which is the last, so the test event and "
        "what its history holds are partly arbitrary.",
        "Use a finer time column if there is one; if these are baskets or batches, consider one "
        "query a basket, or order = 'none'.",
    ),
    zh=Text(
        "{value:.1%} 的事件与同一查询的另一事件时间相同。",
        "这些事件的先后只由表中的顺序决定，因此哪一条是测试事件、历史里有什么，都带有任意性。",
        "如有更精细的时间列请改用它；如果本来就是购物篮或批量导入，"
        "可以一个篮子作一个查询，或设 order = 'none'。",
    ),
)

ONE_MOMENT = Kind(
    "one-moment",
    en=Text(
        "{value:.1%} of all events, of {queries:,} queries, bear one moment: {moment}.",
        "So many at once are an import or a default value, not the time at which things happened; "
        "splits by time and recency then follow the import.",
        "Find the true times, or leave these events out of the test and of time features.",
    ),
    zh=Text(
        "{value:.1%} 的事件（来自 {queries:,} 个查询）都是同一时刻：{moment}。",
        "这么多事件同时发生，多半是批量导入或默认值，而非真实时间；按时间的划分和时近性特征会受其支配。",
        "找回真实时间，否则不要把这些事件用于测试和时间特征。",
    ),
)

SHUFFLED_ORDER = Kind(
    "shuffled-order",
    en=Text(
        "The order of a query's events says no more than a shuffled one: how often one item follows "
        "another again is {adjacent:.1f}, and how items differ in their place is {position:.1f} "
        "standard deviations from chance; neither reaches {needed:g}.",
        "In nearly all data what comes next depends on what came before. Where nothing does, times "
        "or rows were probably shuffled, or are those of an export: the test of the last event is then "
        "one of a random event, and recency tells nothing.",
        "Check how the order came about, a join or a sort of one column alone for instance; if the "
        "data have none, set data.order = 'none'.",
    ),
    zh=Text(
        "查询内事件的先后与随机打乱没有区别：同一物品之后再次出现同一物品的次数偏离随机 {adjacent:.1f} "
        "个标准差，物品所处位置偏离 {position:.1f} 个标准差，均未达到 {needed:g}。",
        "几乎所有数据中，接下来发生什么都与之前有关。若毫无关系，时间或行多半被打乱过，或只是导出时的"
        "顺序：这时“最后一次事件”的测试其实是随机事件的测试，时近性也没有意义。",
        "检查顺序的来历，例如是否经过连接，或只对单独一列排过序；"
        "若数据本无顺序，请设 data.order = 'none'。",
    ),
)

NO_TEST = Kind(
    "empty-test",
    en=Text(
        "The test part holds no positive event of {events:,} events.",
        "Without test events there is no figure at all.",
        "Choose another split, or give a test file with positive events.",
    ),
    zh=Text(
        "{events:,} 条事件中，测试部分没有任何正样本。",
        "没有测试事件就没有任何指标。",
        "换一种划分方式，或提供含有正样本的测试文件。",
    ),
)

TEST_BEFORE_TRAIN = Kind(
    "test-before-train",
    en=Text(
        "{value:.1%} of the test events ({count:,} of {total:,}) are earlier than a training event "
        "of the same query.",
        "The model is told what the query did afterwards and then asked what it did before, which is "
        "easier than what it will be used for: the figures are too good.",
        "Split by time within each query, or leave the split to twotower: leave-last-out or temporal.",
    ),
    zh=Text(
        "{value:.1%} 的测试事件（{total:,} 条中的 {count:,} 条）早于同一查询的某个训练事件。",
        "模型先看到了查询后来的行为，再去预测之前的行为，这比实际使用时容易：指标会偏高。",
        "在每个查询内按时间划分，或交给 twotower：leave-last-out 或 temporal。",
    ),
)

TIME_OVERLAP = Kind(
    "time-overlap",
    en=Text(
        "{value:.1%} of the test events are earlier than the last training event of all queries.",
        "Training then knows what others did later, such as what became popular. With "
        "leave-last-out this is so by construction and common in papers; in use nobody knows it.",
        "Read the figures as a comparison of methods; {passing[split=temporal]} shows what "
        "to expect in use.",
    ),
    zh=Text(
        "{value:.1%} 的测试事件早于全部查询中最后一个训练事件。",
        "训练因此知道他人后来的行为，比如后来什么流行。leave-last-out 本来就是这样，论文中也很常见；"
        "但实际使用时无从得知。",
        "把指标当作方法之间的比较；想知道实际效果请用 {passing[split=temporal]}。",
    ),
)

COLD_ITEMS = Kind(
    "cold-test-items",
    en=Text(
        "{value:.1%} of the test events are of items without a single training event.",
        "Such items can only be found by their features; baselines that count events never find them.",
        "Give {argument[items]} with columns that describe items, and look at the slice of cold items.",
    ),
    zh=Text(
        "{value:.1%} 的测试事件，其物品没有任何训练事件。",
        "这类物品只能靠特征找到；靠计数的基线永远找不到它们。",
        "用 {argument[items]} 提供描述物品的列，并查看冷启动物品的切片指标。",
    ),
)

CATALOGUE_CHURN = Kind(
    "catalogue-churn",
    en=Text(
        "{value:.1%} of the distinct items of the test ({count:,} of {total:,}) are not in training.",
        "The catalogue changes faster than the training data, so a model is out of date when used.",
        "Train on more recent data and more often; describe items by columns.",
    ),
    zh=Text(
        "测试中出现的物品有 {value:.1%}（{total:,} 个中的 {count:,} 个）未在训练中出现。",
        "物品更替快于训练数据，模型一上线就已过时。",
        "用更新的数据、更频繁地训练；并用列来描述物品。",
    ),
)

QUERY_CHURN = Kind(
    "query-churn",
    en=Text(
        "{value:.1%} of the test queries ({count:,} of {total:,}) have no training event.",
        "Nothing is known of them but their features: an embedding of the query is untrained, and "
        "a history is empty.",
        "Give {argument[queries]} with columns that describe them, and look at the slice of cold queries.",
    ),
    zh=Text(
        "{value:.1%} 的测试查询（{total:,} 个中的 {count:,} 个）没有训练事件。",
        "除特征外对它们一无所知：查询的向量未经训练，历史也是空的。",
        "用 {argument[queries]} 提供描述查询的列，并查看冷启动查询的切片指标。",
    ),
)

POPULARITY = Kind(
    "popularity-concentration",
    en=Text(
        "{value:.1%} of the training events are of the {items:,} most popular items, 1 % of those "
        "with an event.",
        "Popularity alone scores well then, and a model may learn little else.",
        "Look at the baseline of popularity first and at the slice of tail items.",
    ),
    zh=Text(
        "{value:.1%} 的训练事件集中在最热门的 {items:,} 个物品上（占有事件物品的 1%）。",
        "此时仅凭热门度就能得到不错的指标，模型可能学不到别的。",
        "先看热门度基线和长尾物品的切片指标。",
    ),
)

FEW_EVENTS = Kind(
    "few-events-per-item",
    en=Text(
        "{value:.1%} of the catalogue's {items:,} items have fewer than {needed} training events; "
        "the median item has {median:g}.",
        "An embedding of its own cannot be learnt from so few events; it is mostly its start value.",
        "Describe items by columns, gather more events, or leave items out that nobody takes.",
    ),
    zh=Text(
        "物品库中 {items:,} 个物品有 {value:.1%} 的训练事件少于 {needed} 次；中位数为 {median:g} 次。",
        "这么少的事件学不出物品自己的向量，基本还是初始值。",
        "用列来描述物品，收集更多事件，或去掉无人问津的物品。",
    ),
)

POSITION_WEIGHTS = Kind(
    "position-weights",
    en=Text(
        "How likely positions are looked at is estimated from {clicks:,} clicks: {examples}. "
        "{value:.1%} of the training clicks are cut at {most:g} times the weight of the first position.",
        "A click weighs the inverse of it in training, and what is cut is corrected in part only.",
        "Compare it with what you know of the page; leave {argument[position_column]} out "
        "if it is far from that.",
    ),
    zh=Text(
        "各位置被看到的可能性由 {clicks:,} 次点击估计：{examples_zh}。"
        "{value:.1%} 的训练点击的权重被截断为第一个位置的 {most:g} 倍。",
        "训练时点击的权重是它的倒数；被截断的只得到部分校正。",
        "与你对页面的了解比较；若相差很远，就不要用 {argument[position_column]}。",
    ),
)

POSITIONS_ASSUMED = Kind(
    "positions-assumed",
    en=Text(
        "How likely positions are looked at is assumed to be 1 / position, since {why}. "
        "{value:.1%} of the training clicks are cut at {most:g} times the weight of the first position.",
        "People may look further down, or less far, than is assumed, and training believes it.",
        "Log what was shown and not clicked, and let two rankers, or one that changes, show the same "
        "items at several positions of the same query.",
    ),
    zh=Text(
        "各位置被看到的可能性假定为 1 / 位置，因为{why_zh}。"
        "{value:.1%} 的训练点击的权重被截断为第一个位置的 {most:g} 倍。",
        "人们实际往下看得可能更多或更少，而训练会信以为真。",
        "记录展示了但未点击的物品，并让两个排序器（或一个会变的排序器）在同一查询的多个位置展示同样的物品。",
    ),
)

EVENT_KINDS = Kind(
    "unstated-event-kinds",
    en=Text(
        "The column {column!r} of the interactions seems to name {value:.0f} kinds of event: {shares}.",
        "Every kind counts as a positive, so a view is asked for in training and in the test as a "
        "purchase is.",
        "State what is asked for, such as {passing[event_column=@column]} with "
        "{passing[target_events=@best]}; events of the other kinds stay in the histories.",
    ),
    zh=Text(
        "交互表的列 {column!r} 似乎是事件类型，共 {value:.0f} 种：{shares}。",
        "目前每种事件都算正样本，因此训练和测试中，一次浏览与一次购买没有区别。",
        "说明要预测哪种事件，例如 {passing[event_column=@column]} 和 "
        "{passing[target_events=@best]}；其他类型的事件仍留在历史中。",
    ),
)

WITHOUT_ROW = Kind(
    "ids-without-a-row",
    en=Text(
        "{count:,} of the {total:,} {what} in the interactions have no row in their table, or an empty "
        "one; {value:.1%} of the events are of these.",
        "Only their ids are known: no column describes them, and no filter finds them.",
        "Complete the table; if the ids are written in another way there (leading zeros, a prefix), write "
        "them alike.",
    ),
    zh=Text(
        "交互中的 {total:,} 个{what_zh}有 {count:,} 个在其表中没有对应的行（或整行为空），"
        "涉及 {value:.1%} 的事件。",
        "只知道它们的 id：没有任何列描述它们，过滤条件也找不到它们。",
        "补全该表；如果只是 id 的写法不同（前导零、前缀等），请统一写法。",
    ),
)

UNUSED = Kind(
    "unused-columns",
    en=Text(
        "Columns of the interactions that are not used ({value:.0f}): {columns}.",
        "A column has a role by its name, or by what is stated; nothing is learnt of the others.",
        "Where one is a role, state it ({passing[time_column=NAME]} and the like); where it "
        "describes the event, such as a rating or a device, state features.event.NAME = KIND, which "
        "histories read.",
    ),
    zh=Text(
        "交互表中有 {value:.0f} 列没有使用：{columns_zh}。",
        "列的角色由列名或显式设置决定；模型不会从其余的列学到任何东西。",
        "如果某列有角色，请写明（如 {passing[time_column=NAME]}）；如果它描述事件本身（如评分、设备），"
        "请设 features.event.NAME = KIND，历史编码器会读取它。",
    ),
)

SHOWN_ONLY = Kind(
    "shown-only-columns",
    en=Text(
        "Columns of the {side} table that are shown and not learnt from ({value:.0f}): {columns}.",
        "Their values name, link or never come twice, so nothing could be learnt that holds for others.",
        "If a column should be learnt from all the same, state its kind in [features.{side}].",
    ),
    zh=Text(
        "{side_zh}表中有 {value:.0f} 列只用于展示，不参与学习：{columns_zh}。",
        "这些列是名称、链接或从不重复的值，学不到可以推广的东西。",
        "如果仍要从某列学习，请在 [features.{side}] 中写明它的类型。",
    ),
)
