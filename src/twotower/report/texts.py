"""Every sentence of the report's frame, in English and in Chinese side by side."""

TEXTS: dict[str, tuple[str, str]] = {
    # the frame
    "report": ("Evaluation report", "评估报告"),
    "made": ("Written {date} by twotower {version}", "{date} 由 twotower {version} 生成"),
    "contents": ("Contents", "目录"),
    "skip": ("Skip to the report", "跳到正文"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "none": ("none", "无"),
    "missing": (
        "Not in this bundle: {what}. Evaluate again with a current version to have it.",
        "此模型包中没有{what}；请用当前版本重新评估。",
    ),
    "what_curves": ("the figures by length of the list", "各列表长度的指标"),
    "what_slices": ("the figures of parts of the test", "测试集各部分的指标"),
    "what_training": ("a training log", "训练日志"),
    "what_exposure": ("what was shown to whom", "曝光情况"),
    # the verdict
    "verdict": ("Verdict", "结论"),
    "subject_model": ("The model", "模型"),
    "subject_served": ("The model as served", "实际提供服务的模型"),
    "as_served": (
        "As served, words in common (BM25) have a share of {share} beside the model's score.",
        "实际服务时，共同词（BM25）在得分中占 {share}，其余为模型得分。",
    ),
    "beats": (
        "{subject} beats {name} by {value} {metric}",
        "{subject}优于{name}，{metric} 高出 {value}",
    ),
    "loses": (
        "{subject} loses to {name} by {value} {metric}",
        "{subject}不及{name}，{metric} 低 {value}",
    ),
    "equal": (
        "{subject} cannot be told apart from {name}",
        "{subject}与{name}无法区分高下",
    ),
    "unpaired": (
        "{subject} reaches {metric} {value}; {name}, the strongest baseline, {other}",
        "{subject}的 {metric} 为 {value}；最强基线{name}为 {other}",
    ),
    "alone": (
        "{subject} reaches {metric} {value}, and no baseline stands beside it",
        "{subject}的 {metric} 为 {value}，没有可比较的基线",
    ),
    "before": ("Before it learnt the test events: {said}", "学习测试事件之前：{said}"),
    "refit_valid": (
        (
            "The model was trained once more, for as many epochs as validation chose ({epochs}), on the "
            "training and validation events together, and so were the baselines; the figures are of these."
        ),
        (
            "按验证集选定的轮数（{epochs}），模型用训练事件和验证事件重新训练了一次，各基线也用同样的事件"
            "重新拟合；以下数字属于重新训练后的模型。"
        ),
    ),
    "refit_all": (
        (
            "The bundle's model was trained once more, for as many epochs as validation chose ({epochs}), "
            "on all events, those of the test included, so that nothing is held out from it. All test "
            "figures on this page are of the model before, which learnt the training events alone."
        ),
        (
            "模型包中的模型按验证集选定的轮数（{epochs}）用全部事件（包括测试事件）重新训练过，"
            "已没有留出的数据可以评估它。本页的测试指标都属于此前只学过训练事件的模型。"
        ),
    ),
    "no_figures": ("This model has not been evaluated", "该模型尚未评估"),
    "interval": ("95 % interval {low} to {high}", "95% 置信区间 {low} 至 {high}"),
    "difference_is": (
        "The difference is {value} {metric}, {interval}.",
        "两者 {metric} 之差为 {value}，{interval}。",
    ),
    "strongest_is": (
        "The 95 % interval of the difference is {low} to {high}. Strongest of {count} baselines: {name}.",
        "差值的 95% 置信区间为 {low} 至 {high}；{name}是 {count} 个基线中最强的。",
    ),
    "no_interval": (
        "These figures come without intervals, so a small difference may be chance.",
        "这些数字没有置信区间，微小的差异可能只是偶然。",
    ),
    "sampled": (
        (
            "Ranked against a sample of the catalogue, not all of it: these figures are inflated and "
            "can only be compared with tables made the same way."
        ),
        "这里只在部分候选中排序，而非全部物品：数字偏高，只能与同样做法的结果比较。",
    ),
    "among_all": ("all {catalogue} items", "全部 {catalogue} 个物品"),
    "among_sample": (
        "{count} candidates each, out of {catalogue} items",
        "每个查询的 {count} 个候选（共 {catalogue} 个物品）",
    ),
    "measured": (
        (
            "Measured on {queries} {part} queries with {targets} relevant items, ranking {among}; items "
            "already seen {seen}."
        ),
        (
            "在{part}的 {queries} 个查询、{targets} 个相关物品上测得，对{among}排序；"
            "已见过的物品{seen}。"
        ),
    ),
    "unfindable": (
        (
            "{count} of these items cannot be found by any method ({seen} were seen before, {absent} are "
            "not in the catalogue); they count as misses."
        ),
        (
            "其中 {count} 个物品任何方法都找不到（{seen} 个此前已见过，{absent} 个不在物品库中），"
            "均计为未命中。"
        ),
    ),
    "test": ("test", "测试集"),
    "valid": ("validation", "验证集"),
    "removed": ("are removed", "已剔除"),
    "kept": ("are kept", "予以保留"),
    "strongest_has": ("{name} has {value}", "{name}为 {value}"),
    "of_seeds": (
        "{metric} over {count} seeds: mean {mean}, standard deviation {sd}.",
        "{count} 个随机种子的 {metric}：均值 {mean}，标准差 {sd}。",
    ),
    # against baselines
    "baselines": ("Against the baselines", "与基线相比"),
    "baselines_lead": (
        (
            "A model earns its keep only above the best of these simple methods. The dot is the mean over "
            "queries, the line its 95 % interval."
        ),
        "模型只有胜过这些简单方法中最好的一个才有意义。圆点是各查询的均值，线段是 95% 置信区间。",
    ),
    "methods_chart": (
        "{metric} of the model and of {count} baselines. {best}",
        "模型与 {count} 个基线的 {metric}。{best}",
    ),
    "methods_table": ("Means over queries, with 95 % intervals", "各查询的均值与 95% 置信区间"),
    "method": ("Method", "方法"),
    "metric": ("Metric", "指标"),
    "model_minus": ("{subject} minus it, {metric}", "{subject}减去它，{metric}"),
    "says": ("Says", "结论"),
    "says_better": ("model better", "模型更好"),
    "says_worse": ("model worse", "模型更差"),
    "says_equal": ("cannot tell", "无法区分"),
    "all_figures": ("Every figure", "全部数字"),
    "settings_of": (
        "Settings of the baselines, chosen on validation data",
        "基线的设置（在验证集上选定）",
    ),
    "setting_half_life_seconds": ("half life in seconds", "半衰期（秒）"),
    "setting_half_life": ("half life", "半衰期"),
    "setting_pair_half_life": ("half life of pairs", "成对半衰期"),
    "setting_neighbours": ("neighbours", "近邻数"),
    "setting_shrinkage": ("shrinkage", "收缩"),
    "setting_regularization": ("regularization", "正则化"),
    "setting_factors": ("factors", "因子数"),
    "setting_alpha": ("alpha", "alpha"),
    "setting_seed": ("seed", "种子"),
    "setting_query_columns": ("columns of queries", "查询的列"),
    "setting_item_columns": ("columns of items", "物品的列"),
    "left_out": ("Not run: {name} ({reason}).", "未运行：{name}（{reason}）。"),
    # curves
    "curves": ("By length of the list", "随列表长度的变化"),
    "curves_lead": (
        "How the figures grow with the number of items that are shown.",
        "随着展示物品数的增加，指标如何变化。",
    ),
    "curve_chart": (
        "{metric} at list lengths {first} to {last}. At {last}: {values}.",
        "列表长度 {first} 至 {last} 时的 {metric}。长度为 {last} 时：{values}。",
    ),
    "k": ("Items shown (k)", "展示物品数 k"),
    # known events
    "known_title": ("New queries: what a few events are worth", "新查询：少量事件有多大价值"),
    "known_events": ("Known events", "已知事件数"),
    "known_chart": (
        "{metric} by the number of events that are known of a query. Two-tower: {values}.",
        "{metric} 随查询已知事件数的变化。双塔：{values}。",
    ),
    "known_value": (
        "{value} ({low} – {high}) with {count}",
        "已知 {count} 个时 {value}（{low} – {high}）",
    ),
    "known_note": (
        (
            "The same {queries} queries each time, as if they were new, with so many events alone. "
            "{metric} of the two-tower model, 95 % intervals: {values}."
        ),
        "同样的 {queries} 个查询，视为新查询，只给这么多事件。双塔的 {metric}（95% 区间）：{values}。",
    ),
    # slices
    "slices": ("For whom is it bad?", "对谁效果不好？"),
    "slices_lead": (
        (
            "The same figure on parts of the test. Read the line, not the dot: few queries make a long "
            "line. The vertical rule is the mean of all queries; a line with a triangle goes on beyond the "
            "axis."
        ),
        (
            "把测试集切开后的同一指标。请看线段而非圆点：查询少则线段长。竖线是全部查询的均值；"
            "带三角的线段超出了坐标轴。"
        ),
    ),
    "worst": ("Surely worse than elsewhere", "确实差于其他部分"),
    "worst_item": (
        "{name}: {metric} {value} ({low} to {high}), against {reference} overall; {queries} queries",
        "{name}：{metric} {value}（{low} 至 {high}），总体为 {reference}；{queries} 个查询",
    ),
    "no_worst": (
        "No part with enough queries is surely worse than the whole.",
        "查询足够多的各部分中，没有哪一部分确实差于总体。",
    ),
    "slice_chart": (
        "{metric} of the model by {by}: {values}.",
        "按{by}划分的模型 {metric}：{values}。",
    ),
    "slice_table": ("All {count} slices", "全部 {count} 个切片"),
    "slice": ("Slice", "切片"),
    "queries": ("Queries", "查询数"),
    "model": ("Model", "模型"),
    "against": ("Minus {name}", "减去{name}"),
    "few": ("few", "太少"),
    "by_cold_items": ("items with and without training events", "物品是否有训练事件"),
    "by_item_popularity": ("popularity of the items", "物品流行度"),
    "by_cold_queries": ("queries with and without training events", "查询是否有训练事件"),
    "by_activity": ("activity of the queries", "查询活跃度"),
    "by_history_length": ("length of the history", "历史长度"),
    "by_time": ("moment of the test", "测试时间"),
    "by_column": ("{side}: {column}", "{side}：{column}"),
    "side_query": ("query", "查询"),
    "side_item": ("item", "物品"),
    "label_cold": ("cold", "冷"),
    "label_warm": ("warm", "热"),
    "label_head": ("head", "头部"),
    "label_middle": ("middle", "中部"),
    "label_tail": ("tail", "尾部"),
    "label_all": ("all", "全部"),
    "label_(other)": ("other values", "其他值"),
    "label_(missing)": ("no value", "无值"),
    "range": ("{low} to {high}", "{low} 至 {high}"),
    "range_events": ("{range} events", "{range} 个事件"),
    # scores
    "scores": ("How scores tell items apart", "分数能否区分物品"),
    "scores_lead": (
        (
            "Scores of what happened next in the test, beside those of other items for the same queries, "
            "in percent of each. The less the two overlap, the better the model tells them apart. Scores "
            "of two models cannot be compared."
        ),
        (
            "测试中之后发生的物品的分数，与同一批查询下其他物品的分数（各自的百分比）。两者重叠越少，模型区分得越好；"
            "分数只属于这个模型，不能与其他模型比较。"
        ),
    ),
    "scores_above": (
        "A test item scores above {above} % of the other items.",
        "测试物品的分数高于 {above}% 的其他物品。",
    ),
    "scores_chart": (
        "Scores of test items and of others; a test item scores above {above} % of the others.",
        "测试物品与其他物品的分数分布；测试物品的分数高于 {above}% 的其他物品。",
    ),
    "scores_targets": ("test items", "测试物品"),
    "scores_others": ("other items", "其他物品"),
    "score": ("Score", "分数"),
    "scores_none": (
        "There are no scores: the bundle holds no test queries that the model knows.",
        "没有分数：模型包中没有模型认识的测试查询。",
    ),
    # what the model reads
    "importance": ("What the answers depend on", "推荐依赖什么"),
    "importance_lead": (
        (
            "What validation queries lose when they get the history of another query, or when a column is "
            "shuffled between rows. What several columns say alike is missed by none of them alone."
        ),
        (
            "把验证查询的历史换成别人的历史，或把某一列在各行之间打乱时，指标损失多少。"
            "若几列包含同样的信息，单独打乱其中一列看不出损失。"
        ),
    ),
    "importance_x": ("{metric} lost", "{metric} 的损失"),
    "importance_chart": (
        "{metric} lost without each part: {values}.",
        "缺少各部分时 {metric} 的损失：{values}。",
    ),
    "importance_none": (
        "Not measured: it takes two validation queries of which something is known.",
        "未测量：至少需要两个有已知信息的验证查询。",
    ),
    # the data
    "profile": ("The data", "数据概况"),
    "profile_events": ("Events over time", "事件随时间的分布"),
    "events_chart": (
        "{count} events from {first} to {last}, those that are held out apart.",
        "{first} 至 {last} 的 {count} 个事件，留出的单独标出。",
    ),
    "events_train": ("training", "训练"),
    "events_held_out": ("held out for validation and test", "留作验证和测试"),
    "period_tip": (
        "{since} to {until}: {train} for training, {held_out} held out",
        "{since} 至 {until}：训练 {train}，留出 {held_out}",
    ),
    "tail": ("The long tail", "长尾"),
    "tail_items": ("items", "物品"),
    "tail_queries": ("queries", "查询"),
    "tail_x": (
        "Percent of items or queries, the busiest first",
        "物品或查询的百分比，最活跃的在前",
    ),
    "tail_note": (
        (
            "Height: percent of the training events that they have. The most popular tenth of the items "
            "has {share} %; {none} % of the items have none."
        ),
        "高度：它们占训练事件的百分比。最热门的一成物品占 {share}%；{none}% 的物品没有训练事件。",
    ),
    "profile_columns": ("What the columns hold", "各列的内容"),
    "profile_caption": ("{count} columns beside the ids", "除 id 之外的 {count} 列"),
    "column": ("Column", "列"),
    "column_missing": ("Missing, %", "缺失（%）"),
    "column_distinct": ("Distinct", "不同值"),
    "column_holds": ("Values", "取值"),
    "profile_words": ("{count} words in the median", "中位数 {count} 个词"),
    "profile_none": (
        "The bundle holds no histories, so of the events only the long tail is known.",
        "模型包不含历史，因此关于事件只知道长尾。",
    ),
    # training
    "training": ("Training", "训练过程"),
    "training_lead": (
        "{epochs} epochs in {seconds}; the weights of epoch {best} were kept.",
        "共 {epochs} 轮，用时 {seconds}；保留了第 {best} 轮的权重。",
    ),
    "training_start": (
        "{epochs} epochs in {seconds}, none of which was better than the start, which was kept.",
        "共 {epochs} 轮，用时 {seconds}；没有一轮好于训练前的状态，因此保留了后者。",
    ),
    "validated_among_labels": (
        (
            " Validation ranked, for each query, only the items it has a label for: its figures are not "
            "to be compared with those of the test, which are of the whole catalogue."
        ),
        "验证时，每个查询只对其有标签的物品排序：其数值不能与测试集的数值相比，后者针对整个物品库。",
    ),
    "epoch": ("Epoch", "轮次"),
    "loss": ("Training loss", "训练损失"),
    "validation": ("Validation {metric}", "验证集 {metric}"),
    "start_chart": (
        "{name} by epoch: from {first} to {last} over {epochs} epochs.",
        "{name}随轮次的变化：{epochs} 轮中从 {first} 到 {last}。",
    ),
    "training_chart": (
        "{name} by epoch: from {first} to {last} over {epochs} epochs; {best} at the epoch kept.",
        "{name}随轮次的变化：{epochs} 轮中从 {first} 到 {last}；所保留的一轮为 {best}。",
    ),
    "kept_epoch": ("kept", "保留"),
    "seconds": ("{count} seconds", "{count} 秒"),
    "minutes": ("{count} minutes", "{count} 分钟"),
    # exposure
    "exposure": ("What gets shown", "展示了什么"),
    "exposure_lead": (
        "Accuracy is not all: a model may be right by showing everybody the same few items.",
        "准确并非全部：模型可能只是把同样几个物品展示给所有人。",
    ),
    "exposure_chart": ("{metric}: {values}.", "{metric}：{values}。"),
    "exposure_table": ("Exposure, by method", "各方法的曝光情况"),
    "mean_coverage": (
        "share of the catalogue that is shown to anybody; more is wider",
        "至少展示给一个人的物品占物品库的比例；越高越广",
    ),
    "mean_gini": (
        "inequality of exposure; 0: all items alike, 1: one item has it all",
        "曝光的不平等程度；0 表示所有物品相同，1 表示集中于一个物品",
    ),
    "mean_novelty": (
        "how rare the shown items are, in bits; more is rarer",
        "所展示物品的稀有程度（比特）；越高越稀有",
    ),
    "mean_popularity_bias": (
        "popularity percentile of what is shown minus that of the test items; above 0: too popular",
        "所展示物品与测试物品的流行度百分位之差；大于 0 表示偏向热门",
    ),
    "mean_diversity": (
        "how unlike each other the items of a list are; more is more varied",
        "同一列表中物品彼此的差异程度；越高越多样",
    ),
    # map
    "map": ("A map of the items", "物品地图"),
    "map_lead": (
        (
            "Items near each other are alike to the model: their vectors of width {dim}, brought to two "
            "dimensions. Distances between far groups mean nothing. Point at a dot to read its title."
        ),
        (
            "相近的物品在模型看来相似：{dim} 维向量被压到二维。相距很远的群之间的距离没有意义。"
            "指向圆点可看标题。"
        ),
    ),
    "map_of": (
        "The {shown} most popular of {all} items.",
        "{all} 个物品中最热门的 {shown} 个。",
    ),
    "map_chart": (
        "Map of {count} items in two dimensions, coloured by {column}: {values}.",
        "{count} 个物品的二维地图，按{column}着色：{values}。",
    ),
    "map_plain": ("Map of {count} items in two dimensions.", "{count} 个物品的二维地图。"),
    "map_none": (
        "There is no map: it takes at least three items whose vectors differ.",
        "没有地图：至少需要三个向量互不相同的物品。",
    ),
    "other": ("other or none", "其他或无"),
    "legend": ("Legend: {column}", "图例：{column}"),
    # examples
    "examples": ("{count} real queries", "{count} 个真实查询"),
    "example": ("One real query", "1 个真实查询"),
    "examples_none": ("Real queries", "真实查询"),
    "examples_lead": (
        "Drawn at random from those with something in the test. Right answers are marked “hit”.",
        "从测试集中有事件的查询里随机抽取。正确的推荐标有“命中”。",
    ),
    "examples_ids": (
        "They are named by their ids, with their features: keep this page as safe as the data.",
        "这里显示了查询的真实编号和特征：请像保管数据一样保管本页。",
    ),
    "examples_private": (
        "They are numbered on this page; the numbers say nothing of their ids.",
        "编号只是它们在本页中的序号，与真实编号无关。",
    ),
    "query": ("Query {id}", "查询 {id}"),
    "history": ("History", "历史"),
    "history_last": (
        "the last {shown} of {all}, oldest first",
        "{all} 个中的最后 {shown} 个，旧的在前",
    ),
    "history_all": ("oldest first", "旧的在前"),
    "history_none": ("No history is known.", "没有已知的历史。"),
    "answer": ("The model’s answer", "模型的推荐"),
    "answer_popular": ("Nothing is known of it: what is popular", "对其一无所知：给出热门物品"),
    "next": ("What happened next", "之后发生的"),
    "hit": ("hit", "命中"),
    "rank": ("rank {rank}", "排第 {rank}"),
    "rank_beyond": ("beyond rank {rank}", "{rank} 名之外"),
    "more": ("and {count} more", "另有 {count} 个"),
    "no_examples": (
        "The bundle holds no histories with test events, so no queries can be shown.",
        "此模型包不含带测试事件的历史，无法展示查询。",
    ),
    # doctor
    "doctor": ("The doctor’s findings", "诊断结果"),
    "doctor_lead": (
        "{errors} errors, {warnings} warnings, {infos} notes.",
        "{errors} 个错误，{warnings} 个警告，{infos} 条提示。",
    ),
    "no_findings": ("Nothing was found.", "没有发现问题。"),
    "error": ("Error", "错误"),
    "warning": ("Warning", "警告"),
    "info": ("Note", "提示"),
    "why": ("Why it matters", "为何重要"),
    "do": ("What to do", "怎么办"),
    # configuration
    "configuration": ("Configuration and provenance", "配置与来源"),
    "changed": ("Settings that differ from the defaults", "与默认值不同的设置"),
    "unchanged": ("Settings left at their defaults", "保持默认的设置"),
    "setting": ("Setting", "设置"),
    "value": ("Value", "值"),
    "default": ("Default", "默认值"),
    "not_set": ("not set", "未设置"),
    "nothing_changed": ("All settings are the defaults.", "所有设置均为默认值。"),
    "features": ("Features", "特征"),
    "feature": ("Feature", "特征"),
    "side": ("Side", "所属"),
    "kind": ("Kind", "类型"),
    "because": ("Because", "原因"),
    "tuned": (", trained", "，一起训练"),
    "provenance": ("Provenance", "来源"),
    "data": ("Data", "数据"),
    "events": ("Events", "事件数"),
    "items": ("Items", "物品数"),
    "sha256_of_events": ("SHA-256 of the events", "事件的 SHA-256"),
    "sha256_of_targets": ("SHA-256 of the test items", "测试物品的 SHA-256"),
    "best_epoch": ("Epoch kept", "保留的轮次"),
    "device": ("Device", "设备"),
    "created": ("Trained", "训练时间"),
    "libraries": ("Libraries", "库版本"),
    "search": ("Search", "检索"),
    "search_exact": ("exact: every item is scored", "精确：给每个物品打分"),
    "search_gap": (
        (
            "approximate: it finds {value} ({low} to {high}) of the 100 best items of {queries} queries; "
            "the figures of this page are of exact rankings"
        ),
        "近似：对 {queries} 个查询，找到前 100 名的 {value}（{low} 至 {high}）；本页指标按精确排序计算",
    ),
    "notes": ("Notes on the data", "数据说明"),
    "dim": ("Width of the vectors", "向量维数"),
    "weights": ("Weights", "参数量"),
    # comparison
    "comparison": ("Comparison of runs", "运行对比"),
    "run_beats": (
        "{run} beats {first} by {value} {metric}",
        "{run} 优于 {first}，{metric} 高出 {value}",
    ),
    "run_loses": (
        "{first} stays ahead: the nearest, {run}, is {value} {metric} behind",
        "{first} 仍领先：最接近的 {run} 的 {metric} 低 {value}",
    ),
    "run_equal": (
        "No run is surely better than {first}",
        "没有哪次运行确实优于 {first}",
    ),
    "run_better": (
        "{run} is better than {first}: {value} {metric}, 95 % interval {low} to {high}.",
        "{run} 优于 {first}：{metric} 相差 {value}，95% 置信区间 {low} 至 {high}。",
    ),
    "run_worse": (
        "{run} is worse than {first}: {value} {metric}, 95 % interval {low} to {high}.",
        "{run} 不及 {first}：{metric} 相差 {value}，95% 置信区间 {low} 至 {high}。",
    ),
    "run_equal_to": (
        "{run} cannot be told apart from {first}: {value} {metric}, 95 % interval {low} to {high}.",
        "{run} 与 {first} 无法区分：{metric} 相差 {value}，95% 置信区间 {low} 至 {high}。",
    ),
    "run_minus": ("{run} minus {first}", "{run} 减去 {first}"),
    "run_says_better": ("better", "更好"),
    "run_says_worse": ("worse", "更差"),
    "run_says_equal": ("cannot tell", "无法区分"),
    "difference": ("Difference", "差值"),
    "figures": ("Figures", "指标"),
    "differences": ("Differences, paired by query", "按查询配对的差值"),
    "run_settings": ("Settings that differ", "不同的设置"),
    "same_settings": ("The runs have the same settings.", "各次运行的设置相同。"),
    "run_slices": ("Slices won and lost", "胜出与落败的切片"),
    "run_slices_lead": (
        (
            "Parts of the test where the whole interval of the difference lies on one side, of {count} "
            "looked at. One in forty is to be expected on each side by chance."
        ),
        "差值的整个区间都在一侧的部分，共考察 {count} 个。每一侧约四十分之一会纯属偶然。",
    ),
    "won": ("{run} won", "{run} 胜出"),
    "lost": ("{run} lost", "{run} 落败"),
    # names
    "name_model": ("two-tower model", "双塔模型"),
    "name_served": ("two-tower as served", "双塔模型（实际服务）"),
    "name_served_before": ("two-tower as served, before", "双塔模型（实际服务，此前）"),
    "name_model_before": ("two-tower model, before", "双塔模型（此前）"),
    "metric_coverage": ("catalogue coverage", "物品覆盖率"),
    "metric_gini": ("Gini of exposure", "曝光基尼系数"),
    "metric_novelty": ("novelty", "新颖度"),
    "metric_popularity_bias": ("popularity bias", "流行度偏差"),
    "metric_diversity": ("intra-list diversity", "列表内多样性"),
    "metric_log_loss": ("log loss", "对数损失"),
}
