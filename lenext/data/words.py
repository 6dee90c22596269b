"""Words that retrieval tasks are made of: plain English, and made-up ones."""

import string

import numpy as np


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words("""
    amber ample ancient autumn bold brave brief bright broad bronze calm careful cheerful civil
    clean clear clever cold common cool copper coral crisp curious damp dark deep dense dim
    distant dry dusty early easy empty equal exact faint fair famous fast fine firm flat formal
    fresh gentle glad golden grand gray green happy hard heavy hidden hollow honest humble icy
    idle inner ivory jolly keen kind large late lively lone long loud lucky mild misty modest
    narrow native neat new noble odd old open outer pale patient plain polite proud quick quiet
    rapid rare ready rich ripe rough round royal rural rusty sandy sharp short shy silent silver
    simple sleepy slow small smooth soft solid spare stable steady steep still strong subtle
    sunny sweet swift tall tame thick thin tidy tiny tough true urban vast warm weary wet wide
    wild windy wise wooden young
""")

NOUNS = _words("""
    anchor apple arrow badge bakery barrel basket beach bell bench bird boat book bottle bridge
    brook broom bucket button cabin candle canyon carpet castle cave chair cherry circle clock
    cloud coast coin corner cottage cup curtain desert door drawer drum eagle engine fence ferry
    field flag flame flute forest fountain fox garden gate glacier glove guitar hammer harbor
    hat hill horse house island jacket jar kettle key kitchen ladder lake lamp lantern leaf
    lemon letter library lighthouse lion map market meadow mirror moon mountain museum needle
    nest oak ocean orchard otter oven owl paddle palace paper path pebble pencil piano pillow
    planet plum pocket pond post rabbit raft river road rocket roof rope sail school shelf ship
    shoe shovel spoon spring square stable stair star station stone storm street table teapot
    temple tent tower train tree tunnel valley village violin wagon wall wheel whistle window
    winter wolf
""")


def compound_words(rng: np.random.Generator, count: int) -> list[str]:
    """That many different words, such as "quiet-river"; of three parts where two give too few."""
    found: dict[str, None] = {}
    firsts = [*ADJECTIVES]
    if count > len(ADJECTIVES) * len(NOUNS) // 4:
        firsts = [f"{first}-{second}" for first in ADJECTIVES for second in ADJECTIVES]
    while len(found) < count:
        found[f"{firsts[rng.integers(len(firsts))]}-{NOUNS[rng.integers(len(NOUNS))]}"] = None
    return list(found)


def coded_words(rng: np.random.Generator, count: int, size: int, *, upper: bool) -> list[str]:
    """That many different words of `size` letters drawn at random."""
    letters = np.array(list(string.ascii_uppercase if upper else string.ascii_lowercase))
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(letters, size))] = None
    return list(found)
