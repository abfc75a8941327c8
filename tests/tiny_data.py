"""Tiny pretrained models with their processors, and data sets, as users have them in folders."""

from __future__ import annotations

import gzip
from pathlib import Path

import datasets
import numpy as np
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tiny_models import HIDDEN, LAYERS, MLP, VOCAB, tiny_model

PIXELS, RATE = 16, 400  # height and width of images, samples of sound per second
WORDS = "the a cat dog bird runs sleeps sings well badly here there".split()
CLASSES = ("cat", "dog", "bird")


def save_pretrained(family: str, folder: Path) -> None:
    """Saves a tiny model without a head, and its processor."""
    model = hf.Wav2Vec2Model(_wav2vec2()) if family == "wav2vec2" else tiny_model(family)
    whole = family in ("clip", "llama", "gpt2", "whisper")
    (model if whole else model.base_model).save_pretrained(folder)
    _processor(family).save_pretrained(folder)


def _wav2vec2() -> hf.Wav2Vec2Config:
    return hf.Wav2Vec2Config(
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        conv_dim=(8, 8),
        conv_kernel=(8, 4),
        conv_stride=(4, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        mask_time_length=2,
    )


def _processor(family: str) -> hf.ProcessorMixin | hf.PreTrainedTokenizerBase:
    square = {"height": PIXELS, "width": PIXELS}
    if family == "vit":
        return hf.ViTImageProcessor(size=square)
    if family == "dinov2":
        return hf.BitImageProcessor(size={"shortest_edge": PIXELS}, crop_size=square)
    if family == "clip":
        images = hf.CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=square)
        return hf.CLIPProcessor(images, tokenizer(length=16))
    if family == "wav2vec2":
        return hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    if family == "whisper":  # 32 frames, as many as the tiny model takes
        return hf.WhisperFeatureExtractor(
            feature_size=8, sampling_rate=RATE, hop_length=10, chunk_length=0.8, n_fft=20
        )
    return tokenizer(length=64)


def tokenizer(length: int) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of a few words, with ids below those of the tiny models."""
    special = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, "[UNK]": 3}
    words = {word: number for number, word in enumerate(WORDS, start=len(special))}
    fast = Tokenizer(WordLevel({**special, **words}, unk_token="[UNK]"))
    assert fast.get_vocab_size() <= VOCAB
    fast.pre_tokenizer = Whitespace()
    fast.post_processor = TemplateProcessing(
        single="[BOS] $A [EOS]",
        pair="[BOS] $A [EOS] $B [EOS]",
        special_tokens=[("[BOS]", 1), ("[EOS]", 2)],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=length,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )


# -- data --------------------------------------------------------------------------------------


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of one to eight words."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, count)
    return [" ".join(generator.choice(WORDS, length)) for length in lengths]


def column(role: str, count: int) -> list[object]:
    """Values for a column of this role: the classes take turns."""
    generator = np.random.default_rng(0)
    if role == "label":
        return [number % len(CLASSES) for number in range(count)]
    if role == "image":
        shape = (count, PIXELS, PIXELS, 3)
        return [Image.fromarray(i) for i in generator.integers(0, 256, shape, np.uint8)]
    if role == "audio":  # of different lengths
        return [generator.normal(size=RATE // 2 + 10 * n).tolist() for n in range(count)]
    return sentences(count)


def save_dataset(folder: Path, columns: dict[str, str], splits: list[str], count: int = 9) -> Path:
    """A saved data set with columns of the given roles (role -> name)."""
    features = {
        "label": datasets.ClassLabel(names=list(CLASSES)),
        "image": datasets.Image(),
        "audio": datasets.List(datasets.Value("float32")),
        "text": datasets.Value("string"),
    }
    part = datasets.Dataset.from_dict(
        {name: column(role, count) for role, name in columns.items()},
        features=datasets.Features({name: features[role] for role, name in columns.items()}),
    )
    datasets.DatasetDict(dict.fromkeys(splits, part)).save_to_disk(folder)
    return folder


def write_csv(file: Path, count: int = 9) -> Path:
    """Texts and labels, the latter as words."""
    rows = [
        f"{text},{CLASSES[number]}"
        for text, number in zip(sentences(count), column("label", count), strict=True)
    ]
    file.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return file


def write_fashion_mnist(folder: Path, count: int = 20) -> Path:
    """Files like those of FashionMNIST, with few images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 28, 28), np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as stream:
                stream.write(header + array.tobytes())
    return folder
