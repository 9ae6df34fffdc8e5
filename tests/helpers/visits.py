"""Rows about sights, in one wording, whose values are known."""

from mop_t5.data import Example

NAMES = ["故宫", "天坛", "颐和园", "恭王府", "孔庙", "雍和宫", "圆明园", "什刹海", "慕田峪", "潭柘寺"]


def visit(name, price="20-50元", rating="4分", number=0):
    """A row in the wording of the references below."""
    return Example(
        "attraction",
        f"用户：我想去{name}玩，门票{price}，评分{rating}，好吗？\n客服：好的，电话是010-6513213{number}。",
        f"用户要去名叫{name}的景点游玩，希望景点的票价是{price}的，希望景点的评分是{rating}以上。",
        f"{name}-{number}",
    )
