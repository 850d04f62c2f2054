"""What the doctor can say of a trained model, in English and Chinese."""

from twotower.doctor.findings import Kind, Text

LOSS_AT_CHANCE = Kind(
    "loss-at-chance",
    Text(
        "The training loss ended at {loss:.3f}; a model that cannot tell items apart has "
        "{chance:.3f} ({value:.0%} of it).",
        "The towers have learnt nothing, whatever the figures say.",
        "Lower or raise training.learning_rate by 10 times, train longer, and check that the towers "
        "read something and that their outputs differ.",
    ),
    Text(
        "训练损失最终为 {loss:.3f}；完全不能区分物品的模型为 {chance:.3f}（前者是后者的 {value:.0%}）。",
        "无论指标如何，两个塔什么也没有学到。",
        "把 training.learning_rate 调低或调高 10 倍，训练更久，"
        "并检查两个塔是否读到了输入、输出是否有差别。",
    ),
)

LOSS_AT_POPULARITY = Kind(
    "loss-no-better-than-popularity",
    Text(
        "The training loss ended at {loss:.3f}; scores that are nothing but popularity have "
        "{popularity:.3f} ({value:.0%} of it).",
        "The model has learnt no more than which items are popular.",
        "Train longer or with another training.learning_rate, lower towers.dropout and "
        "training.weight_decay, and check which features the query tower reads.",
    ),
    Text(
        "训练损失最终为 {loss:.3f}；只按流行度打分为 {popularity:.3f}（前者是后者的 {value:.0%}）。",
        "模型只学到了哪些物品流行。",
        "训练更久或更换 training.learning_rate，调低 towers.dropout 和 training.weight_decay，"
        "并检查查询塔读取了哪些特征。",
    ),
)

_FEW_WHY = "Vectors on few directions can order the items in few ways, however wide the towers are."
_FEW_DO = (
    "Look for a layer that lets nothing through (a dead activation, a bottleneck, a missing feature), "
    "and lower training.weight_decay or training.learning_rate."
)
_FEW_WHY_ZH = "方向太少的向量只能给出很少几种排序，塔再宽也没有用。"
_FEW_DO_ZH = (
    "查找不传递信息的层（失活的激活函数、过窄的瓶颈、缺失的特征），"
    "并调低 training.weight_decay 或 training.learning_rate。"
)

ITEM_VECTORS_FEW_DIRECTIONS = Kind(
    "item-vectors-few-directions",
    Text(
        "The vectors of {vectors:,} items have an effective rank of {value:.1f} of {dim}.",
        _FEW_WHY,
        _FEW_DO,
    ),
    Text(
        "{vectors:,} 个物品向量的有效秩为 {value:.1f}（宽度 {dim}）。",
        _FEW_WHY_ZH,
        _FEW_DO_ZH,
    ),
)

QUERY_VECTORS_FEW_DIRECTIONS = Kind(
    "query-vectors-few-directions",
    Text(
        "The vectors of {vectors:,} queries have an effective rank of {value:.1f} of {dim}.",
        _FEW_WHY,
        _FEW_DO,
    ),
    Text(
        "{vectors:,} 个查询向量的有效秩为 {value:.1f}（宽度 {dim}）。",
        _FEW_WHY_ZH,
        _FEW_DO_ZH,
    ),
)

_ALIKE_DO = (
    "Look for a constant that swamps the rest (a bias, a feature that was not scaled), and make sure "
    "that the tower's last layer is linear."
)
_ALIKE_DO_ZH = "查找淹没其余部分的常量（偏置、未缩放的特征），并确认塔的最后一层是线性的。"

ITEM_VECTORS_ALIKE = Kind(
    "item-vectors-alike",
    Text(
        "The vectors of {vectors:,} items point almost the same way: uniformity {value:.2f}, where 0 "
        "is all the same and -4 is even.",
        "What tells items apart is a small rest of each vector, which learns slowly and drowns.",
        _ALIKE_DO,
    ),
    Text(
        "{vectors:,} 个物品向量几乎指向同一方向：均匀度 {value:.2f}（0 为完全相同，-4 为均匀分布）。",
        "区分物品的只是向量中很小的一部分，它学得慢，也容易被淹没。",
        _ALIKE_DO_ZH,
    ),
)

QUERY_VECTORS_ALIKE = Kind(
    "query-vectors-alike",
    Text(
        "The vectors of {vectors:,} queries point almost the same way: uniformity {value:.2f}, where "
        "0 is all the same and -4 is even.",
        "Queries with almost the same vector get almost the same answer.",
        _ALIKE_DO,
    ),
    Text(
        "{vectors:,} 个查询向量几乎指向同一方向：均匀度 {value:.2f}（0 为完全相同，-4 为均匀分布）。",
        "向量几乎相同的查询会得到几乎相同的答案。",
        _ALIKE_DO_ZH,
    ),
)

NORM_FOLLOWS_POPULARITY = Kind(
    "norm-follows-popularity",
    Text(
        "The length of an item's vector goes with its popularity: Spearman {value:.2f} over "
        "{items:,} items.",
        "A long vector scores high for many queries, so that popular items are shown more often.",
        "If rare items are shown too seldom, compare with towers.similarity = 'cosine'.",
    ),
    Text(
        "物品向量的长度随流行度变化：{items:,} 个物品上的 Spearman 相关系数为 {value:.2f}。",
        "长向量对许多查询得分都高，热门物品因此更常出现。",
        "如果冷门物品出现得太少，请与 towers.similarity = 'cosine' 比较。",
    ),
)

HUB_ITEM = Kind(
    "hub-item",
    Text(
        "Item {item} stands in the first {k} of {value:.0%} of the queries that it can be shown to; "
        "its popularity explains {justified:.1%} (skewness of how often items are shown: "
        "{skewness:.1f}, drawn by popularity: {expected_skewness:.1f}).",
        "A hub takes a place in everyone's answer whether it fits or not.",
        "Look at this item's features for extreme values, lower training.learning_rate, or compare "
        "with towers.similarity = 'cosine', which takes a vector's length away.",
    ),
    Text(
        "在可以展示物品 {item} 的查询中，它出现在 {value:.0%} 的前 {k} 名里；按其流行度只应为 "
        "{justified:.1%}（物品出现次数的偏度为 {skewness:.1f}，按流行度抽取为 {expected_skewness:.1f}）。",
        "枢纽物品不管是否合适，都会占据每个人答案中的一个位置。",
        "检查该物品的特征是否有极端值，调低 training.learning_rate，"
        "或与去掉向量长度的 towers.similarity = 'cosine' 比较。",
    ),
)

POPULARITY_ONLY = Kind(
    "popularity-only",
    Text(
        "{value:.0%} of what the model answers first is what is most popular anyway; two queries "
        "share {pairwise:.0%} of their first {k}.",
        "A list of the most popular items does the same without a model.",
        "Give the query tower something that tells queries apart: a history (towers.history), "
        "features, or an id (towers.query_id); and check that training went below popularity's loss.",
    ),
    Text(
        "模型排在最前的答案中有 {value:.0%} 本来就是最热门的物品；任意两个查询的前 {k} 名有 "
        "{pairwise:.0%} 相同。",
        "一张热门榜不需要模型也能做到。",
        "给查询塔能区分查询的输入：历史（towers.history）、特征或编号（towers.query_id）；"
        "并检查训练损失是否低于流行度的损失。",
    ),
)

SAME_ANSWERS = Kind(
    "same-answer-for-all",
    Text(
        "Two queries share {value:.0%} of their first {k} answers, which are not the most popular "
        "items ({popular:.0%} of them are).",
        "An answer that hardly depends on who asks is no retrieval.",
        "Check that the query tower's output depends on its input, and look for items with extreme "
        "features.",
    ),
    Text(
        "任意两个查询的前 {k} 个答案有 {value:.0%} 相同，而且并不是最热门的物品（只有 {popular:.0%} 是）。",
        "几乎不取决于谁在查询的答案算不上检索。",
        "检查查询塔的输出是否取决于输入，并查找特征有极端值的物品。",
    ),
)

NOT_LOOKED_AT = Kind(
    "not-looked-at",
    Text(
        "Not looked at: {what}, because {because}.",
        "No finding about them does not mean that they are healthy.",
        "{do}",
    ),
    Text(
        "未检查：{what_zh}，因为{because_zh}。",
        "没有相关的发现并不意味着它们没有问题。",
        "{do_zh}",
    ),
)

FALSE_NEGATIVES = Kind(
    "false-negatives",
    Text(
        "{value:.1%} of a query's negatives in training are items that it liked at another time.",
        "Each of them teaches the model to push away what the query likes.",
        "Set loss.mask_known = true and let the query tower read the history, which is what gets "
        "masked; where items come again, take loss.negatives = 'uniform' or a smaller "
        "training.batch_size.",
    ),
    Text(
        "训练中，一个查询的负样本有 {value:.1%} 是它在其他时候喜欢过的物品。",
        "每一个都在教模型远离查询喜欢的东西。",
        "设置 loss.mask_known = true，并让查询塔读取历史（被屏蔽的正是历史中的物品）；"
        "如果物品会重复出现，请使用 loss.negatives = 'uniform' 或更小的 training.batch_size。",
    ),
)

DEAD_VOCABULARY = Kind(
    "dead-vocabulary",
    Text(
        "{value:.0%} of the {rows:,} rows of {feature} hold a value that training saw fewer than "
        "{min_count} times or never.",
        "They all get the vector of the unknown, so the feature says nothing of them.",
        "Use coarser values, give the side other features that are known in advance, or lower "
        "features.min_count.",
    ),
    Text(
        "{feature} 的 {rows:,} 行中有 {value:.0%} 的取值在训练中出现不到 {min_count} 次或从未出现。",
        "它们都得到“未知”的向量，这个特征对它们没有任何说明。",
        "使用更粗的取值，为这一侧添加事先已知的其他特征，或调低 features.min_count。",
    ),
)

FEATURE_IGNORED = Kind(
    "feature-ignored",
    Text(
        "Shuffling {feature} between rows leaves {value:.1%} of the queries with exactly the same "
        "first {k}.",
        "The towers do not read this feature, or its values do not differ.",
        "Check the column and the tower, or state it as 'shown' in [features].",
    ),
    Text(
        "把 {feature} 在各行之间打乱后，{value:.1%} 的查询的前 {k} 名完全不变。",
        "两个塔没有读取这个特征，或者它的取值没有差别。",
        "检查这一列和对应的塔，或在 [features] 中把它声明为 'shown'。",
    ),
)

FEATURE_DOES_NOT_HELP = Kind(
    "feature-does-not-help",
    Text(
        "Shuffling {feature} between rows takes {value:.4f} NDCG@{k} of {base:.4f} away (95 % "
        "interval {low:+.4f} to {high:+.4f}): it may be nothing.",
        "The feature changes answers without making them better, or others say the same.",
        "Nothing has to be done; leaving it out makes the model smaller and may make it better.",
    ),
    Text(
        "把 {feature} 在各行之间打乱后，NDCG@{k} 从 {base:.4f} 下降 {value:.4f}"
        "（95 % 区间 {low:+.4f} 至 {high:+.4f}）：可能没有影响。",
        "这个特征改变了答案却没有改善答案，或者其他特征已经包含同样的信息。",
        "不必处理；去掉它会让模型更小，也可能更好。",
    ),
)

HISTORY_IGNORED = Kind(
    "history-ignored",
    Text(
        "{value:.0%} of the queries get exactly the same first {k} with another query's history; "
        "NDCG@{k} falls by {drop:.4f} of {base:.4f} (95 % interval {low:+.4f} to {high:+.4f}).",
        "The query tower is given the history and hardly uses it, so that it answers what was liked "
        "by others.",
        "Check the history encoder and its mask, lower towers.dropout, or compare with "
        "towers.history = 'mean'.",
    ),
    Text(
        "换成其他查询的历史后，{value:.0%} 的查询的前 {k} 名完全不变；NDCG@{k} 从 {base:.4f} 下降 "
        "{drop:.4f}（95 % 区间 {low:+.4f} 至 {high:+.4f}）。",
        "查询塔得到了历史却几乎不用，给出的只是别人喜欢的东西。",
        "检查历史编码器及其掩码，调低 towers.dropout，或与 towers.history = 'mean' 比较。",
    ),
)
