"""Data: datasets, tokenisers, and the pipelines and crops that train and evaluate on them."""

from lenext.data.checks import check_data
from lenext.data.corpus import Corpus, load_corpus, open_split, summary
from lenext.data.crops import Crops, evaluation_crops, masked_crops
from lenext.data.datasets import DATASETS
from lenext.data.frames import Frame
from lenext.data.masking import mask_tokens, require_mask
from lenext.data.pipeline import causal_lm_batches, masked_lm_batches, random_crops
from lenext.data.positions import Pose, RandomPositions
from lenext.data.prepare import open_builder
from lenext.data.prompts import share_found
from lenext.data.ruler import RULER
from lenext.data.stdlib_packages import StdlibPackages
from lenext.data.stdlib_source import StdlibSource
from lenext.data.tasks import TASKS
from lenext.data.text_files import TextFiles
from lenext.data.tokenizer_files import get_tokenizer, open_tokenizer, read_tokenizer_json
from lenext.data.tokenizers import ByteTokenizer, Tokenizer, VocabularyTokenizer

__all__ = [
    "DATASETS",
    "RULER",
    "TASKS",
    "ByteTokenizer",
    "Corpus",
    "Crops",
    "Frame",
    "Pose",
    "RandomPositions",
    "StdlibPackages",
    "StdlibSource",
    "TextFiles",
    "Tokenizer",
    "VocabularyTokenizer",
    "causal_lm_batches",
    "check_data",
    "evaluation_crops",
    "get_tokenizer",
    "load_corpus",
    "mask_tokens",
    "masked_crops",
    "masked_lm_batches",
    "open_builder",
    "open_split",
    "open_tokenizer",
    "random_crops",
    "read_tokenizer_json",
    "require_mask",
    "share_found",
    "summary",
]
