"""How LXMERT and UNITER name the tensors of our transformer.

All formats of LXMERT's family are first brought to one set of names: Hugging Face's ``LxmertModel`` (``embeddings.``,
``encoder.``, ``pooler.``) and the heads of ``LxmertForPreTraining`` (``cls.``, ``answer_head.``), with X-LXMERT's additions
``obj_predict_head.``, ``mask_feat`` and ``vis_emb.weight``, the codebook, and ``logit_fc.``, LXMERT's head of NLVR2. UNITER's are
its own without ``uniter.``, with LXMERT's names for the heads that both have.
"""

from __future__ import annotations

import re

from torch import Tensor

from diptych.model.networks.config import TransformerConfig

KINDS = ("weight", "bias")
CODEBOOK = "vis_emb.weight"
MASK_FEATURE = "mask_feat"
REGRESSION = "feat_regress"
CODE_WEIGHTS = "obj_predict_head.out_cluster.weight"
CODE_FEATURES = "obj_predict_head.linear_feat.weight"
WORDS = "embeddings.word_embeddings.weight"
TIED_WORDS = "cls.predictions.decoder.weight"
POSITIONS = "embeddings.position_embeddings.weight"
WORD_BIAS = "cls.predictions.bias"
TIED_WORD_BIAS = "cls.predictions.decoder.bias"
# of an architecture's visual embedding
FEATURE_PROJECTION = {"two_streams": "encoder.visn_fc.visn_fc", "single_stream": "img_embeddings.img_linear"}
# stacks of layers, by their numbers in TransformerConfig
STACKS = {
    "two_streams": {"language_layers": "layer", "visual_layers": "r_layers", "cross_layers": "x_layers"},
    "single_stream": {"layers": "layer"},
}
MATCHING_HEAD = "cls.seq_relationship"
ANSWER_HEAD = "answer_head.logit_fc"
PAIR_HEAD = "logit_fc"

# Beginnings of the names of what our network consists of.
OURS = (
    "embeddings.", "encoder.", "pooler.", "cls.", "answer_head.", "logit_fc.", "obj_predict_head.", "mask_feat", "vis_emb",
    "img_embeddings.", "feat_regress.",
)  # fmt: skip

UNUSED = {
    r"embeddings\.(position_ids|token_type_ids)$": "a constant",
    r"visual_pos$": "a constant: the boxes of the cells",
    r"pooler\.": "none of its heads that are used reads the pooled [CLS] state",
    r"answer_head\.": "an answer head whose answers are not known; give their list as --answers",
    r"obj_predict_head\.(decoder_dict\.obj|out_obj)\.": "LXMERT's classes of objects; ours predicts codes",
    r"obj_predict_head\.(decoder_dict\.attr|out_attr)\.": "LXMERT's attributes of objects; ours predicts codes",
    r"obj_predict_head\.decoder_dict\.feat\.": "LXMERT's regression of masked features; ours predicts codes",
}


class Names(dict[str, tuple[str, ...]]):
    """The name of every weight of ours to its names in a checkpoint; several are joined along the first dimension (queries, keys
    and values are one matrix here)."""

    def add(self, ours: str, *theirs: str, kinds: tuple[str, ...] = KINDS) -> None:
        for kind in kinds:
            self[f"{ours}.{kind}"] = tuple(f"{name}.{kind}" for name in theirs)

    def attention(self, ours: str, inner: str, outer: str) -> None:
        self.add(f"{ours}.projection", f"{inner}.query", f"{inner}.key", f"{inner}.value")
        self.add(f"{ours}.output", f"{outer}.dense")
        self.add(f"{ours}.norm", f"{outer}.LayerNorm")

    def feed_forward(self, ours: str, inner: str, outer: str) -> None:
        self.add(f"{ours}.inner", f"{inner}.dense")
        self.add(f"{ours}.outer", f"{outer}.dense")
        self.add(f"{ours}.norm", f"{outer}.LayerNorm")

    def stack(self, ours: str, theirs: str, count: int) -> None:
        """Layers of one stream, named as BERT's."""
        for index in range(count):
            layer = f"encoder.{theirs}.{index}"
            self.attention(
                f"{ours}.{index}.attention", f"{layer}.attention.self", f"{layer}.attention.output"
            )
            self.feed_forward(f"{ours}.{index}.feed_forward", f"{layer}.intermediate", f"{layer}.output")

    def text_embedding(self) -> None:
        for ours, theirs in (("words", "word"), ("positions", "position"), ("token_types", "token_type")):
            self.add(f"text_embedding.{ours}", f"embeddings.{theirs}_embeddings", kinds=("weight",))
        self.add("text_embedding.norm", "embeddings.LayerNorm")

    def head_transform(self, ours: str, theirs: str) -> None:
        self.add(f"{ours}.0", f"{theirs}.dense")
        self.add(f"{ours}.2", f"{theirs}.LayerNorm")

    def heads(self, config: TransformerConfig) -> None:
        """Those that both have, and X-LXMERT's of codes."""
        self.head_transform("word_transform", "cls.predictions.transform")
        self["word_bias"] = (WORD_BIAS,)
        self.head_transform("code_head.transform", "obj_predict_head.transform")
        if config.code_head != "linear":
            self.add("code_head.features", "obj_predict_head.linear_feat")
        self.add("code_head.codes", "obj_predict_head.out_cluster")
        if config.pooled:
            self.add("pooler", "pooler.dense")
        if config.matching:
            self.add("matching_head", MATCHING_HEAD)
        for kept, last, theirs in (
            (config.answers, "answer_head.answers", ANSWER_HEAD),
            (config.pairs, "pair_head.truth", PAIR_HEAD),
        ):
            if kept:
                head = last.split(".")[0]
                self.add(f"{head}.inner", f"{theirs}.0")
                self.add(f"{head}.norm", f"{theirs}.2")
                self.add(last, f"{theirs}.3")


def names_of(config: TransformerConfig) -> Names:
    """The names in the checkpoints of the config's architecture."""
    return uniter_names(config) if config.architecture == "single_stream" else lxmert_names(config)


def lxmert_names(config: TransformerConfig) -> Names:
    """The names in LXMERT."""
    names = Names()
    names.text_embedding()
    names.add("visual_embedding.features", FEATURE_PROJECTION["two_streams"])
    names.add("visual_embedding.features_norm", "encoder.visn_fc.visn_layer_norm")
    names.add("visual_embedding.boxes", "encoder.visn_fc.box_fc")
    names.add("visual_embedding.boxes_norm", "encoder.visn_fc.box_layer_norm")
    names["visual_embedding.mask_feature"] = (MASK_FEATURE,)
    names.stack("language_layers", "layer", config.language_layers)
    names.stack("visual_layers", "r_layers", config.visual_layers)
    for index in range(config.cross_layers):
        ours, theirs = f"cross_layers.{index}", f"encoder.x_layers.{index}"
        # LXMERT calls it visual_attention, but both streams attend to each other through it.
        cross = f"{theirs}.visual_attention"
        names.attention(f"{ours}.cross_attention", f"{cross}.att", f"{cross}.output")
        for stream, short in (("text", "lang"), ("visual", "visn")):
            own = f"{theirs}.{short}_self_att"
            names.attention(f"{ours}.{stream}_attention", f"{own}.self", f"{own}.output")
            names.feed_forward(
                f"{ours}.{stream}_feed_forward", f"{theirs}.{short}_inter", f"{theirs}.{short}_output"
            )
    names.heads(config)
    return names


def uniter_names(config: TransformerConfig) -> Names:
    """The names in UNITER, whose mask feature and regression have become tensors of their own
    (:mod:`diptych.model.importers.uniter`)."""
    names = Names()
    names.text_embedding()
    for ours, theirs in (
        ("features", "img_linear"),
        ("features_norm", "img_layer_norm"),
        ("boxes", "pos_linear"),
        ("boxes_norm", "pos_layer_norm"),
        ("norm", "LayerNorm"),
    ):
        names.add(f"visual_embedding.{ours}", f"img_embeddings.{theirs}")
    names["visual_embedding.mask_feature"] = (MASK_FEATURE,)
    names.stack("layers", "layer", config.layers)
    names.heads(config)
    if config.regresses:
        names.add("feature_head.transform.0", "feat_regress.net.0")
        names.add("feature_head.transform.2", "feat_regress.net.2")
        names.add("feature_head.features", REGRESSION)
    return names


def common_names(tensors: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, tuple[str, Tensor]]:
    """Bring a checkpoint to the names above: common name to (name in the file, tensor).

    Args:
        prefixes: what to put for each beginning of a name; the first that fits is applied, after "module." (of
            DataParallel) and "_orig_mod." (of torch.compile) are gone. LayerNorm's old names gamma and beta become
            weight and bias.
    """
    from diptych.features.weight_files import bare_name  # whoever has read a checkpoint has diptych-features

    common = {}
    for name, tensor in tensors.items():
        new = bare_name(name)
        for old, replacement in prefixes.items():
            if new.startswith(old):
                new = replacement + new.removeprefix(old)
                break
        new = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", new))
        common[new] = (name, tensor)
    return common
