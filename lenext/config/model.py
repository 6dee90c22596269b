"""The section `model` of a config: what a model is made by."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and types of a model; a family reads what it has.

    The section has these keys at these defaults, and two more: `family`, one of
    `lenext.models.FAMILIES`, and `method`.

    Attributes:
      vocab_size: V; in a config 0 stands for the tokeniser's, and more leaves ids unused.
      hidden_size: D, width of the residual stream.
      intermediate_size: width inside the MLP; of a GAU, E, of its gate and its values.
      key_size: H, of a head; even, for rotary pairs.
      num_layers: depth.
      num_heads: N, of queries. A GAU has one.
      num_kv_heads: K, heads of keys and values, by which N is divided; 0 for N. Decoder only, as
        the next ten.
      mlp: "gated" (SwiGLU), "geglu" (its gate by GELU in place of SiLU), "plain" (GELU) or "erf"
        (GELU as it is defined; the others take its approximation with tanh).
      norm: "rms", with a gain; "centred_rms", with a gain of 1 + the parameter; or "layer", with a
        gain and an offset.
      post_norm: what attention and MLP add is normalised, too (Gemma's four norms a layer).
      qk_norm: RMS normalisation, with a gain, of every query and key (arXiv 2302.05442).
      scaled_embedding: embeddings of tokens are multiplied by sqrt(D).
      max_positions: learned embeddings of absolute positions, beside the method's; 0 for none.
      attention_bias: on which maps of attention there is a bias even without use_bias: "qkv" or
        "qkvo".
      parallel_residual: a layer's MLP reads what its attention reads, not what that gives.
      tied_head: the head is the embedding.
      logit_softcap: logits over the vocabulary are kept within +-this, by its tanh; 0 for no bound.
      type_vocab_size: token types (segments of a sentence pair), of encoders and GAUs.
      norm_epsilon: added to the mean square before its root; 0 for the family's own.
      remat: the backward pass computes each layer anew: less memory for more time.
      dropout: rate on embeddings and on what layers add.
      use_bias: biases on the dense maps; of a GAU also offsets on q and k.
      dtype: of the computation; normalisation, attention rows and sums are float32.
      param_dtype: in which a model holds its maps and embeddings; gains, norms and what methods
        learn are float32. Training moves float32 ones, which checkpoints hold, and casts them once
        a step.
    """

    vocab_size: int = 0
    hidden_size: int = 128
    intermediate_size: int = 256
    key_size: int = 64
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 0
    mlp: str = "gated"
    norm: str = "rms"
    post_norm: bool = False
    qk_norm: bool = False
    scaled_embedding: bool = False
    max_positions: int = 0
    attention_bias: str = ""
    parallel_residual: bool = False
    tied_head: bool = True
    logit_softcap: float = 0.0
    type_vocab_size: int = 2
    norm_epsilon: float = 0.0
    remat: bool = False
    dropout: float = 0.0
    use_bias: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
