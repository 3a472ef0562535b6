"""Who is asked what, in which order and on which sides: all drawn from one seed, before the first answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from diptych.eval.errors import UserError
from diptych.eval.study.vocabulary import Vocabulary, find_masks

# In the order in which an annotator meets them: hidden words before whole captions would give them away, realism
# before captions can colour it.
KINDS = ("hummus", "fidelity", "semantics")
# More is a slip of the finger, and would be drawn until memory ends.
MOST_ANNOTATORS, MOST_CHECKS = 10_000, 1_000
# What hummus checks ask for: common words that are easy to type.
_CHECK_WORDS = ("window", "river", "paper", "garden", "yellow", "mountain", "table", "winter")


@dataclass(frozen=True)
class Item:
    """Something to ask about, the same for every annotator who gets it.

    kind: "hummus", "fidelity" or "semantics".
    image: the key of the caption and its pictures.
    caption: of semantics and hummus; with {picture} where a check names the picture to choose. Empty for fidelity.
    system, other: whose pictures are shown; hummus has no other.
    category, word, start, end, accepted: the hidden word caption[start:end] of hummus, and the spellings that count.
    check: an attention check with a known answer: `system`'s picture, or the accepted word. A check of fidelity shows
        `system`'s picture beside the same one scrambled.
    """

    kind: str
    image: str
    caption: str
    system: str
    other: str | None = None
    category: str | None = None
    word: str | None = None
    start: int = 0
    end: int = 0
    accepted: tuple[str, ...] = ()
    check: bool = False


@dataclass(frozen=True)
class Question:
    """An item as one annotator gets it; `system_first` puts the picture of the item's `system` first (left)."""

    item: int
    system_first: bool


@dataclass(frozen=True)
class Plan:
    """All items, and per annotator the questions in order."""

    items: tuple[Item, ...]
    orders: tuple[tuple[Question, ...], ...]


def make_plan(
    captions: Mapping[str, str],
    systems: Sequence[str],
    vocabulary: Vocabulary,
    *,
    kinds: Sequence[str] = KINDS,
    captions_per_pair: int = 300,
    captions_per_category: int = 100,
    answers_per_item: int = 5,
    annotators: int = 10,
    checks_per_kind: int = 2,
    seed: int = 0,
) -> Plan:
    """Draw a study: the same arguments give the same plan.

    captions: key to caption, of pictures that every system has.
    systems: the first is compared with each other one, on the same captions for fidelity and semantics.
    captions_per_pair, captions_per_category: how many at most are drawn; a caption serves one category of hummus.
    answers_per_item: how many annotators get an item. Nobody gets a hidden word twice, with pictures of two systems,
        so hummus has at most annotators // systems.
    checks_per_kind: attention checks that each annotator gets among the questions of each kind.

    Sides are balanced per annotator and pair of systems. Raises UserError where nothing can be asked.
    """
    for name, value in (("items", captions_per_pair), ("masked", captions_per_category), ("seed", seed + 1)):
        if value < 1:
            raise UserError(f"--{name} is too small: {value if name != 'seed' else seed}")
    if annotators < 1 or answers_per_item < 1 or checks_per_kind < 0:
        raise UserError("--annotators and --answers have to be at least 1, --checks at least 0")
    if annotators > MOST_ANNOTATORS or checks_per_kind > MOST_CHECKS:
        raise UserError(
            f"--annotators can be {MOST_ANNOTATORS} at most and --checks {MOST_CHECKS}, not {annotators} and "
            f"{checks_per_kind}"
        )
    if not captions:
        raise UserError("no caption has a picture of every system")
    pairwise = [kind for kind in KINDS if kind in kinds and kind != "hummus"]
    if pairwise and len(systems) < 2:
        raise UserError(
            f"{' and '.join(pairwise)} compare two systems: give --system NAME=FOLDER twice or more"
        )

    items: list[Item] = []
    asked: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(annotators)]
    if "hummus" in kinds:
        if annotators < len(systems):
            raise UserError(
                f"hummus shows nobody the same hidden word twice: {len(systems)} systems want "
                f"{len(systems)} --annotators or more, not {annotators}"
            )
        _deal_hummus(
            items, asked, captions, systems, vocabulary, captions_per_category, answers_per_item, seed
        )
    keys = sorted(captions)
    drawn = Random(f"{seed} pairs").sample(keys, min(captions_per_pair, len(keys)))
    for kind in pairwise:
        _deal_pairs(items, asked, kind, captions, systems, drawn, answers_per_item, seed)

    orders = []
    for annotator in range(annotators):
        random = Random(f"{seed} annotator {annotator}")
        order: list[Question] = []
        for kind in (kind for kind in KINDS if kind in kinds):
            questions = _with_sides(asked[annotator][kind], items, random)
            order += _with_checks(questions, items, kind, captions, systems, checks_per_kind, random)
        orders.append(tuple(order))
    return Plan(tuple(items), tuple(orders))


def _deal_hummus(
    items: list[Item],
    asked: list[dict[str, list[int]]],
    captions: Mapping[str, str],
    systems: Sequence[str],
    vocabulary: Vocabulary,
    wanted: int,
    answers: int,
    seed: int,
) -> None:
    random = Random(f"{seed} words")
    masks = {key: find_masks(caption, vocabulary) for key, caption in captions.items()}
    holding = {
        category: {key for key, found in masks.items() if any(mask.category == category for mask in found)}
        for category in vocabulary.forms
    }
    if not any(holding.values()):
        raise UserError(
            f"no caption holds a word of {', '.join(vocabulary.forms)}: give --words a file that fits"
        )
    answers = min(answers, len(asked) // len(systems))
    used: set[str] = set()
    # the rarest category chooses first
    for category in sorted(holding, key=lambda name: (len(holding[name]), name)):
        free = sorted(holding[category] - used)
        chosen = random.sample(free, min(wanted, len(free)))
        used |= set(chosen)
        for key in chosen:
            mask = random.choice([mask for mask in masks[key] if mask.category == category])
            accepted = tuple(sorted(vocabulary.forms[category][mask.word]))
            who = _least_asked(asked, "hummus", answers * len(systems), random)
            for place, system in enumerate(systems):
                for annotator in who[place * answers : (place + 1) * answers]:
                    asked[annotator]["hummus"].append(len(items))
                items.append(
                    Item(
                        kind="hummus",
                        image=key,
                        caption=captions[key],
                        system=system,
                        category=category,
                        word=mask.word,
                        start=mask.start,
                        end=mask.end,
                        accepted=accepted,
                    )
                )


def _deal_pairs(
    items: list[Item],
    asked: list[dict[str, list[int]]],
    kind: str,
    captions: Mapping[str, str],
    systems: Sequence[str],
    drawn: Sequence[str],
    answers: int,
    seed: int,
) -> None:
    random = Random(f"{seed} {kind}")
    for key in drawn:
        for other in systems[1:]:
            for annotator in _least_asked(asked, kind, answers, random):
                asked[annotator][kind].append(len(items))
            caption = captions[key] if kind == "semantics" else ""
            items.append(Item(kind, key, caption, systems[0], other))


def _least_asked(asked: list[dict[str, list[int]]], kind: str, count: int, random: Random) -> list[int]:
    """The annotators with the fewest questions of a kind, ties and order by chance."""
    everybody = list(range(len(asked)))
    random.shuffle(everybody)
    chosen = sorted(everybody, key=lambda annotator: len(asked[annotator][kind]))[:count]
    random.shuffle(chosen)
    return chosen


def _with_sides(indices: Sequence[int], items: Sequence[Item], random: Random) -> list[Question]:
    """Questions in random order; of each pair of systems half have the first system first."""
    counts = Counter((items[index].system, items[index].other) for index in indices)
    sides: dict[tuple[str, str | None], list[bool]] = {}
    for pair, count in counts.items():
        odd = [random.random() < 0.5] * (count % 2)
        sides[pair] = [True] * (count // 2) + [False] * (count // 2) + odd
        random.shuffle(sides[pair])
    order = list(indices)
    random.shuffle(order)
    return [Question(index, sides[items[index].system, items[index].other].pop()) for index in order]


def _with_checks(
    questions: list[Question],
    items: list[Item],
    kind: str,
    captions: Mapping[str, str],
    systems: Sequence[str],
    checks: int,
    random: Random,
) -> list[Question]:
    """The questions with checks among them, one somewhere in each of `checks` equal parts; new items are added."""
    result = list(questions)
    # from the end, so that earlier places stay what they are
    for part in reversed(range(checks if questions else 0)):
        low, high = part * len(questions) // checks, (part + 1) * len(questions) // checks
        key = random.choice(sorted(captions))
        result.insert(
            random.randint(low, high) if high > low else high,
            Question(len(items), system_first=random.random() < 0.5),
        )
        items.append(_check(kind, key, systems, random))
    return result


def _check(kind: str, key: str, systems: Sequence[str], random: Random) -> Item:
    if kind == "hummus":
        word = random.choice(_CHECK_WORDS)
        caption = f"Whatever the picture shows, please type the word {word}: {word}"
        return Item(
            kind,
            key,
            caption,
            systems[0],
            category="check",
            word=word,
            start=len(caption) - len(word),
            end=len(caption),
            accepted=(word,),
            check=True,
        )
    caption = (
        "Whatever the pictures show, please choose picture {picture} here." if kind == "semantics" else ""
    )
    # a check of fidelity shows one picture and the same scrambled
    other = random.choice(systems[1:]) if kind == "semantics" else None
    return Item(kind, key, caption, systems[0], other, check=True)
