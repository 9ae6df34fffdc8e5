"""A small synthetic corpus: customer-service dialogues of five scenarios, in Chinese.

What it is. A dialogue is drawn from the phrase lists below: the user says what happened and what is wanted, the agent
asks for one detail and says what will be done. Every value of a summary (place, dish, amount, time, number) stands in
the dialogue, word for word; the dialogue holds values that the summary must leave out, too. Summaries say who reports
which problem, what is wanted and what was done.

What there is to learn. The summary of a dialogue can be written in five house styles (`_STYLES`: other order, other
words, same content). In the split `general` the style is drawn at random, so that a backbone trained on it can write
all five and cannot know which one is wanted. In `train`, `valid` and `test` each scenario has its own style. Tuning on
`train` therefore has one thing to find, the style of each scenario, and a frozen backbone without tuning must guess it.
Real corpora are not so tidy: numbers on this one show that a method trains and steers, not how it ranks on real data.
"""

from __future__ import annotations

import random

from mop_t5.data.corpus import Example


def _words(text: str) -> list[str]:
    return text.split()


_AREAS = _words(
    "东湖 西城 南山 北苑 青年 人民 解放 中山 光明 和平 长江 黄河 泰山 桃园 梅岭 竹林 "
    "松江 柳州 金桥 银河 滨海 临港 新华 文化"
)
_KINDS = _words("路 大街 广场 地铁站 医院 公园 小区 火车站 机场 大学")
_NAMES = _words("王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙")
_GOODS = _words(
    "蓝牙耳机 保温杯 运动鞋 台灯 电饭煲 双肩包 羽绒服 充电宝 加湿器 行李箱 "
    "键盘 牛仔裤 护手霜 雨伞 手表 枕头 吹风机 洗面奶 望远镜 滑板"
)
_DISHES = _words(
    "牛肉面 宫保鸡丁 麻辣烫 黄焖鸡 酸菜鱼 小笼包 烤鸭饭 鱼香肉丝 炸鸡 披萨 寿司 凉皮 "
    "煲仔饭 水煮肉片 番茄炒蛋 馄饨 火锅 烧烤 奶茶 豆浆"
)
_SHOWS = _words(
    "流浪地球 满江红 长津湖 战狼 红海行动 哪吒 唐人街探案 夏洛特烦恼 "
    "天鹅湖 茶馆 雷雨 图兰朵 梁祝 四世同堂 白蛇传 牡丹亭"
)

# Per scenario: what the user calls to say, the same as a clause of the summary, and the detail the agent asks for.
_PROBLEMS = {
    "taxi": [
        ("我从{place}打车到{goal}，司机绕路，车费要{fee}元", "从{place}到{goal}的司机绕路收费{fee}元"),
        ("我打车去{goal}，车费{fee}元被扣了两次", "去{goal}的车费{fee}元被重复扣款"),
        ("在{place}叫的车一直没来，还收了我{fee}元违约金", "在{place}叫车未到被收违约金{fee}元"),
        ("我把{goods}落在从{place}出发的车上了", "把{goods}遗落在从{place}出发的车上"),
    ],
    "ticket": [
        ("我买了{count}张{show}的票，付了{fee}元却没出票", "购买{count}张{show}的票付款{fee}元未出票"),
        ("我买的{show}临时改到了{time}，我看不了", "{show}临时改到{time}无法观看"),
        ("我买{show}的票时选错了座位，想换到{count}号厅", "{show}的票选错座位想换到{count}号厅"),
        ("{show}取消了，{fee}元票款一直没退", "{show}取消后票款{fee}元未退"),
    ],
    "e-commerce": [
        ("我买的{goods}到货就坏了，花了{fee}元呢", "{fee}元购买的{goods}到货损坏"),
        ("我买的{goods}三天了还没有发到{place}", "寄往{place}的{goods}三天未到"),
        ("我订了{count}件{goods}，只收到一件", "订购{count}件{goods}只收到一件"),
        ("刚买的{goods}就降价了{fee}元", "{goods}买后降价{fee}元"),
    ],
    "take-out": [
        ("我{time}点的{dish}到现在都没有送到{place}", "{time}点的{dish}未送到{place}"),
        ("我点的{dish}送来时洒了，一共{fee}元", "{fee}元的{dish}送达时洒漏"),
        ("我点了{count}份{dish}，骑手只送来一份", "点{count}份{dish}骑手只送来一份"),
        ("骑手把我的{dish}送错到{place}了", "骑手把{dish}错送到{place}"),
    ],
    "food": [
        ("我在{place}店吃{dish}吃出了头发", "在{place}店的{dish}里吃出头发"),
        ("我在{place}店团购的{dish}，店员说用不了，{fee}元的券呢", "{place}店拒收{fee}元的{dish}团购券"),
        ("我订了{time}的位子，到了{place}店却说没有", "在{place}店预订的{time}座位没有保留"),
        ("{place}店的{dish}结账时多算了{fee}元", "{place}店的{dish}结账多收{fee}元"),
    ],
}
SCENARIOS = tuple(_PROBLEMS)
# What the user wants: how it is said, and how it is summarised.
_WISHES = [
    ("麻烦把钱退给我", "退款"),
    ("能不能赔偿我一下", "赔偿"),
    ("请你们给我一个说法", "给出说明"),
    ("我要投诉他们", "投诉处理"),
    ("帮我尽快解决吧", "尽快解决"),
]
_OUTCOMES = [
    ("我已经为您登记，{hours}小时内会有专员联系您", "登记并承诺{hours}小时内联系"),
    ("这边给您补偿一张{coupon}元的优惠券", "补偿{coupon}元优惠券"),
    ("款项会在{hours}小时内原路退回", "答应{hours}小时内原路退回款项"),
    ("我们核实以后在{hours}小时内答复您", "核实后{hours}小时内答复"),
]
_QUESTIONS = [
    ("请问您怎么称呼？", "我姓{name}。"),
    ("请提供一下订单尾号。", "尾号是{order}。"),
    ("请问您的手机尾号是多少？", "{order}。"),
    ("请问是什么时候的事？", "{moment}的事。"),
]
# The five house styles, in the order of SCENARIOS; p: problem, w: wish, o: outcome.
_STYLES = (
    "乘客反映{p}，要求{w}，客服{o}。",
    "【{w}】来电人称{p}；处理结果：{o}。",
    "平台{o}。起因是买家{p}，诉求为{w}。",
    "诉求{w}：顾客表示{p}，最终{o}。",
    "已{o}，食客此前因{p}希望{w}。",
)
_SHARES = (5, 4, 3, 2, 2)  # of the rows, in the order of SCENARIOS


def synthetic_corpus(
    seed: int = 0, *, general: int = 4000, train: int = 4000, valid: int = 250, test: int = 250
) -> dict[str, list[Example]]:
    """The splits `general` (random styles) and `train`, `valid`, `test` (one style a scenario) with that many rows.

    Equal arguments give equal rows on every machine. No dialogue occurs twice, within a split or in two. Scenarios take
    unequal shares of a split (taxi most, food least), so that temperature mixing has something to do.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    splits = {}
    for split, size in (("general", general), ("train", train), ("valid", valid), ("test", test)):
        rows = []
        while len(rows) < size:
            scenario = (
                rng.choices(SCENARIOS, weights=(5, 4, 3, 2, 2))[0] if split != "test" else SCENARIOS[len(rows) % 5]
            )
            style = rng.choice(_STYLES) if split == "general" else _STYLES[SCENARIOS.index(scenario)]
            dialogue, summary = _pair(rng, scenario, style)
            if dialogue not in seen:
                seen.add(dialogue)
                rows.append(Example(scenario, dialogue, summary, f"{split}-{len(rows) + 1}"))
        splits[split] = rows
    return splits


def _pair(rng: random.Random, scenario: str, style: str) -> tuple[str, str]:
    values = _values(rng)
    said, problem = rng.choice(_PROBLEMS[scenario])
    wish_said, wish = rng.choice(_WISHES)
    outcome_said, outcome = rng.choice(_OUTCOMES)
    question, answer = rng.choice(_QUESTIONS)
    turns = [
        f"用户：{said}，{wish_said}。",
        f"客服：{question}",
        f"用户：{answer}",
        f"客服：好的，{outcome_said}。",
    ]
    summary = style.format(p=problem, w=wish, o=outcome)
    return "\n".join(turns).format(**values), summary.format(**values)


def _values(rng: random.Random) -> dict[str, str]:
    place, goal = rng.sample([area + kind for area in _AREAS for kind in _KINDS], 2)
    hours = [f"{hour}:{minute}" for hour in range(9, 22) for minute in ("00", "15", "30", "45")]
    return {
        "place": place,
        "goal": goal,
        "name": rng.choice(_NAMES),
        "goods": rng.choice(_GOODS),
        "dish": rng.choice(_DISHES),
        "show": rng.choice(_SHOWS),
        "fee": str(rng.randint(11, 99)),
        "coupon": str(rng.choice([5, 10, 15, 20, 25, 30])),
        "hours": str(rng.choice([2, 4, 12, 24, 36, 48, 72])),
        "count": str(rng.randint(2, 9)),
        "time": rng.choice(hours),
        "moment": f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日",
        "order": f"{rng.randint(0, 9999):04d}",
    }
