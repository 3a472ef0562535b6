"""A small Toybox that asks, for the tests of questions."""

from diptych.features.datasets.toybox import GrammarConfig, QuestionsConfig, SceneConfig, ToyboxConfig

SCENES = SceneConfig(two=0.13, three=0.07, large=0.7, second=0.65, third=0.15, jitter=1.0)
GRAMMAR = GrammarConfig(usual=0.75, where=0.93, size=0.35, scenery=0.6, second=0.88, third=0.4)
ASKED = QuestionsConfig(
    splits=("train", "val", "test", "compositional"),
    per_picture=12,
    graph_per_picture=10,
    statements_per_picture=6.0,
    answers=10,
    otherwise=0.1,
    wrong=0.01,
    colored=0.5,
)
CONFIG = ToyboxConfig(600, 20, 300, 60, 10, 64, SCENES, GRAMMAR, ASKED)
