"""How does a prompt become something a UNet can read?

A byte-pair vocabulary (Sennrich et al. 2015, arXiv:1508.07909) cuts the prompt into pieces, and the text tower of CLIP
(Radford et al. 2021, arXiv:2103.00020) turns each piece into a vector that has heard all pieces before it. The UNet
attends to these last hidden states. The tower is causal: what a piece becomes never depends on the padding behind it.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch

from t2im.encoders.folders import first_line, locate, part_of, require_complete, sha256_of_weights
from t2im.errors import ModelError, UsageError
from t2im.files import atomic_path
from t2im.networks import CLIPConfig
from t2im.shapes import TextStates
from t2im.weights import read_safetensors

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPModel, CLIPTextModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

WEIGHTS = "model.safetensors"
PREFIX = "text_model."  # in every file, though newer transformers have no such level in the module any more
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


class PromptTooLong(UserWarning):
    """A prompt had more pieces than the text encoder reads; the message names the words it never saw."""


class TextEncoder:
    """CLIP's tokenizer and text tower: prompts in, last hidden states out.

    padding: "attend" gives every prompt its full padded context without a mask, as the stock Stable Diffusion pipeline
    does; "mask" gives the prompts' own pieces, padded to the longest of the batch, with a mask.
    """

    def __init__(
        self, module: "CLIPTextModel", tokenizer: "CLIPTokenizer", padding: Literal["attend", "mask"] = "attend"
    ) -> None:
        if len(tokenizer) > module.config.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} pieces, the text encoder {module.config.vocab_size}: "
                f"they do not belong together. Take both from one model."
            )
        self.module = module
        self.tokenizer = tokenizer
        self.padding = padding
        # A tokenizer saved without a length answers 10^30, and a stock pipeline would pad to that.
        tokenizer.model_max_length = min(tokenizer.model_max_length, module.config.max_position_embeddings)

    @classmethod
    def load(
        cls, source: str | Path, *, padding: Literal["attend", "mask"] = "attend", local_files_only: bool = False
    ) -> Self:
        """Load a frozen fp32 encoder from a pipeline (text_encoder/ and tokenizer/), a CLIP folder, or a hub id.

        Raises: ModelError, if there is none, or its weights are no safetensors, incomplete or damaged.
        """
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        wanted = {"text_encoder": ("config.json", WEIGHTS), "tokenizer": TOKENIZER_FILES}
        root = locate(source, wanted, local_files_only=local_files_only)
        folder = part_of(root, "text_encoder", "CLIPTextModel|CLIPModel|CLIPTextModelWithProjection", WEIGHTS)
        vocabulary = root / "tokenizer" if (root / "tokenizer").is_dir() else root
        if not any((vocabulary / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ModelError(
                f"{vocabulary}: holds neither tokenizer.json nor vocab.json. Copy the model's tokenizer there."
            )
        weights = read_safetensors(folder / WEIGHTS)
        try:
            module = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
            stored = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
            missing, _ = module.load_state_dict(stored, strict=False)  # a whole CLIP has its image tower beside it
            tokenizer = CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True)
        except Exception as error:  # damaged files, wrong shapes and odd configurations all raise differently
            raise ModelError(f"{root}: cannot be loaded ({first_line(error)}). Save it again.") from error
        require_complete(module, folder, missing)
        return cls(module.eval().requires_grad_(False), tokenizer, padding)

    def save(self, folder: str | Path) -> None:
        """Write text_encoder/ and tokenizer/ as a pipeline folder holds them, for old and new versions of its readers."""
        from safetensors.torch import save_file

        folder = Path(folder)
        weights = {PREFIX + name: tensor.contiguous() for name, tensor in self.module.state_dict().items()}
        with atomic_path(folder / "text_encoder" / WEIGHTS) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        self.module.config.architectures = ["CLIPTextModel"]
        self.module.config.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        # vocab.json and merges.txt, which older tokenizers read instead of tokenizer.json
        self.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """Translate prompts to float32 states (batch, tokens, width); warns with the words that do not fit."""
        if isinstance(prompts, str):
            raise UsageError("the text encoder takes a list of prompts: write [prompt].")
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length" if self.padding == "attend" else "longest",
            max_length=self.context_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.bool()
        for row in torch.nonzero(mask.sum(dim=1) == self.context_length)[:, 0].tolist():  # full, or more than full
            if dropped := self.dropped_words(prompts[row]):
                warnings.warn(
                    f'prompt "{_shorten(prompts[row])}" has more than {self.context_length - 2} pieces; '
                    f"these words are not seen: {_shorten(' '.join(dropped))}",
                    PromptTooLong,
                    stacklevel=2,
                )
        device = next(self.module.parameters()).device
        # No attention mask goes in: the tower is causal, and the stock pipeline gives none.
        with torch.no_grad():
            states = self.module(input_ids=tokens.input_ids.to(device)).last_hidden_state
        return TextStates(states.float(), mask.to(device) if self.padding == "mask" else None)

    def tokenize(self, prompt: str) -> list[str]:
        """Cut a prompt into its pieces, with the start and end marks, however many they are.

        A prompt fits if these are at most `context_length`.
        """
        pieces: list[str] = self.tokenizer(prompt, verbose=False).tokens()
        return pieces

    def dropped_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt that are beyond the context, in whole or in part; none if it fits."""
        encoding = self.tokenizer(prompt, verbose=False, return_offsets_mapping=True)
        if len(encoding.input_ids) <= self.context_length:
            return []
        words = encoding.word_ids()
        first = words.index(words[self.context_length - 1])  # the last place of the context is taken by the end mark
        return prompt[encoding["offset_mapping"][first][0] :].split()

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.module.to(device)
        return self

    @property
    def width(self) -> int:
        """Width of the hidden states: the UNet's cross_attention_dim."""
        return int(self.module.config.hidden_size)

    @property
    def context_length(self) -> int:
        """Pieces of a prompt that are read, with the start and end marks."""
        return int(self.tokenizer.model_max_length)

    @property
    def sha256(self) -> str:
        """Identity of weights, vocabulary and padding: two encoders with equal hashes say the same."""
        decisive = ("hidden_act", "num_attention_heads", "layer_norm_eps")
        tokenizer = self.tokenizer
        settings = {
            "config": {name: getattr(self.module.config, name) for name in decisive},
            "vocabulary": tokenizer.get_vocab(),
            "merges": [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]],
            "marks": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
            "context": [self.context_length, self.padding],
        }
        return sha256_of_weights(self.module, settings)


def train_tokenizer(captions: Iterable[str], vocab_size: int, context_length: int) -> "CLIPTokenizer":
    """Learn a lower-case byte-pair vocabulary of CLIP's kind.

    Its order is CLIP's: 256 bytes, the same bytes at the end of a word, the merges in the order in which they were
    learned, the start mark, the end mark. With every byte inside, no text is unknown; with the end mark's id the
    highest, also old code that looks for the end of a prompt by argmax finds it.

    vocab_size: an upper bound; few captions have fewer pieces that occur twice.

    Raises: UsageError, if vocab_size leaves no room for the bytes and marks.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_and_ends = alphabet + [byte + END_OF_WORD for byte in alphabet]
    room = vocab_size - len(bytes_and_ends) - 2
    if room < 0:
        raise UsageError(f"vocab_size {vocab_size} is too small: bytes and marks alone are {vocab_size - room}.")
    rules = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=bytes_and_ends,  # their ids break ties between pairs; left to the trainer, they are random
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:room]
    pieces = [*bytes_and_ends, *dict.fromkeys(left + right for left, right in merges), START, END]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges, model_max_length=context_length
    )


def new_clip(config: CLIPConfig, tokenizer: "CLIPTokenizer") -> "CLIPModel":
    """Build an untrained CLIP with both towers for a tokenizer of `train_tokenizer`; `text_part` takes its text tower."""
    from transformers.models.clip.configuration_clip import CLIPConfig as TwoTowers
    from transformers.models.clip.modeling_clip import CLIPModel

    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "projection_dim": config.projection_dim,
        "hidden_act": "gelu",
        # Pooling looks for this id. (Left at the number 2, it would fall back to argmax.)
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_dim,
        "hidden_act": "gelu",
    }
    return CLIPModel(TwoTowers(text_config=text, vision_config=vision, projection_dim=config.projection_dim))


def text_part(
    clip: "CLIPModel", tokenizer: "CLIPTokenizer", padding: Literal["attend", "mask"] = "attend"
) -> TextEncoder:
    """Return the text tower of a CLIP as an encoder; the weights are shared, not copied."""
    return TextEncoder(clip.text_model, tokenizer, padding)


def _shorten(text: str, length: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
