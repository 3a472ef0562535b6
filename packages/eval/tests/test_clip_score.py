"""CLIPScore against transformers' CLIP with the same random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.eval.scorers.clip import Clip, ClipConfig, build_clip
from diptych.eval.scorers.clip_score import PROMPT, clip_scores

CONFIG = ClipConfig(32, 32, 2, 32, 4, 8, 32, 2, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def transformers_clip(clip: Clip):
    """The same network by Hugging Face, with the weights of ours (open_clip's)."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    assert clip.config is not None and clip.tokenizer is not None
    config, words = clip.config, clip.tokenizer
    text = CLIPTextConfig(
        vocab_size=words.get_vocab_size(), hidden_size=config.text_width, intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers, num_attention_heads=config.text_heads, hidden_act="gelu",
        max_position_embeddings=config.context_length, projection_dim=config.embedding_dim,
        bos_token_id=words.token_to_id("[START]"), eos_token_id=words.token_to_id("[END]"), pad_token_id=words.token_to_id("[PAD]"),
    )  # fmt: skip
    assert isinstance(config.vision_layers, int)
    vision = CLIPVisionConfig(
        hidden_size=config.vision_width, intermediate_size=4 * config.vision_width, num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads, image_size=config.image_size, patch_size=config.patch_size,
        hidden_act="gelu", projection_dim=config.embedding_dim,
    )  # fmt: skip
    model = CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.embedding_dim
        )
    )
    ours = clip.model.state_dict()
    theirs: dict[str, Tensor] = {
        "logit_scale": ours["logit_scale"],
        "text_model.embeddings.token_embedding.weight": ours["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": ours["positional_embedding"],
        "text_projection.weight": ours["text_projection"].T,
        "vision_model.embeddings.class_embedding": ours["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": ours["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": ours["visual.conv1.weight"],
        "visual_projection.weight": ours["visual.proj"].T,
    }
    for end in ("weight", "bias"):
        theirs[f"text_model.final_layer_norm.{end}"] = ours[f"ln_final.{end}"]
        theirs[f"vision_model.pre_layrnorm.{end}"] = ours[f"visual.ln_pre.{end}"]
        theirs[f"vision_model.post_layernorm.{end}"] = ours[f"visual.ln_post.{end}"]
    for tower, prefix, layers in (("text_model", "", config.text_layers), ("vision_model", "visual.", config.vision_layers)):  # fmt: skip
        for layer in range(layers):
            source, target = f"{prefix}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for end in ("weight", "bias"):
                query, key, value = ours[f"{source}.attn.in_proj_{end}"].chunk(3)
                for name, part in (("q", query), ("k", key), ("v", value)):
                    theirs[f"{target}.self_attn.{name}_proj.{end}"] = part
                theirs[f"{target}.self_attn.out_proj.{end}"] = ours[f"{source}.attn.out_proj.{end}"]
                theirs[f"{target}.layer_norm1.{end}"] = ours[f"{source}.ln_1.{end}"]
                theirs[f"{target}.layer_norm2.{end}"] = ours[f"{source}.ln_2.{end}"]
                theirs[f"{target}.mlp.fc1.{end}"] = ours[f"{source}.mlp.c_fc.{end}"]
                theirs[f"{target}.mlp.fc2.{end}"] = ours[f"{source}.mlp.c_proj.{end}"]
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)
    return model.eval()


def test_clip_score_equals_that_of_transformers(drawn) -> None:
    pictures, captions, _ = drawn
    clip = build_clip(CONFIG, captions, seed=5).eval()
    # embeddings of an untrained network are nearly one vector: spread them out
    with torch.no_grad():
        for parameter in clip.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    other = transformers_clip(clip)
    texts = [PROMPT + several[0] for several in captions[:60]]
    images = pictures[:60].float() / 255
    with torch.no_grad():
        scores = clip_scores(clip.encode_images(images), clip.encode_texts(texts))
        answer = other(input_ids=clip.tokenize(texts), pixel_values=(images - clip.mean) / clip.std)
        cosines = torch.nn.functional.cosine_similarity(answer.image_embeds, answer.text_embeds)
    torch.testing.assert_close(scores, 2.5 * cosines.clamp(min=0), atol=1e-5, rtol=1e-5)
    assert scores.std() > 0.05 and (scores == 0).any() and (scores > 0).any()
    assert torch.equal(clip_scores(torch.eye(2), -torch.eye(2)), torch.zeros(2))
