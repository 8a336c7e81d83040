"""Tags of models that say how a model was made or is used, not what it was trained on."""

import re

# "license:mit", "base_model:adapter:a/b"; "en".
_FORM = re.compile(r"[\w-]+:.+|[a-z]{2}")
# A task: "text-to-image", "image-classification", "question-answering".
_TASK = re.compile(
    r"(?:[a-z]+-)*(?:to|any|image|text|token|audio|video|object|mask|depth|feature|sentence|zero"
    r"|question|table|visual|document|tabular|time|reinforcement|automatic)"
    r"-(?:[a-z]+-)*(?:image|text|video|audio|speech|3d|any|classification|generation|detection|"
    r"segmentation|answering|extraction|similarity|recognition|estimation|learning|"
    r"regression|forecasting|retrieval|ranking|feature)"
)
_WORDS = {
    *("adapter", "autotrain", "axolotl", "bitsandbytes", "checkpoint", "chat", "comfyui", "dora"),
    *("conversational", "diffusers", "diffusers-training", "dreambooth", "endpoints-compatible"),
    *("fill-mask", "fine-tuned", "finetuned", "flax", "flux", "flux-diffusers", "full-finetune"),
    *("generated-from-trainer", "gguf", "gptq", "hf-asr-leaderboard", "imagefolder", "jax"),
    *("instruct", "keras", "llama-factory", "locon", "lokr", "loha", "lora", "lycoris", "merge"),
    *("mergekit", "mlx", "model-hub-mixin", "not-for-all-audiences", "onnx", "peft", "pytorch"),
    *("pytorch-model-hub-mixin", "safetensors", "sd3", "sd3.5", "sdxl", "sentence-transformers"),
    *("sft", "simpletuner", "stable-diffusion", "stable-diffusion-diffusers", "summarization"),
    *("stable-diffusion-xl", "stable-diffusion-xl-diffusers", "template-sd-lora", "tensorboard"),
    *("tensorflow", "text-generation-inference", "textual-inversion", "tf", "timm", "trainer"),
    *("transformers", "translation", "trl", "unsloth", "wan", "ai-toolkit"),
    *("graph-ml", "keypoint-detection", "robotics", "text2text-generation"),
    *("voice-activity-detection",),
}


def says_of_training(tag: str) -> bool:
    """Whether a tag may say what a model was trained on.

    Args:
      tag: as hubs and READMEs give it to a model.

    Example:
      >>> [t for t in ("LoRA", "text-to-image", "license:mit", "cat") if says_of_training(t)]
      ['cat']
    """
    tag = re.sub(r"[\s_]+", "-", tag.casefold().strip())
    return not (tag in _WORDS or _FORM.fullmatch(tag) or _TASK.fullmatch(tag))
