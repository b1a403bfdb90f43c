"""Small random GPT-2s by transformers, and their logits: gpt2/ and gpt2-untied/.

python -m pip install torch transformers safetensors && python tests/golden/by_transformers.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent

for name, tied in (("gpt2", True), ("gpt2-untied", False)):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23, n_positions=16, n_embd=16, n_layer=2, n_head=4, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # biases and norms that are not at their start
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(0, 23, (3, 16))
    with torch.no_grad():
        logits = model(tokens).logits
    np.savez(HERE / name / "logits.npz", tokens=tokens.numpy(), logits=logits.numpy())
