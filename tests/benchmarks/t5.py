"""The T5 encoder against transformers' in PyTorch: prompts per second, same weights, one process.

python -m tests.benchmarks.t5            # t5_small, 35M parameters, 77 tokens
python -m tests.benchmarks.t5 --quick
python -m tests.benchmarks.t5 --preset=t5_xxl --dtype=bfloat16 --batch=1,16,64    # on a GPU
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import T5Config, T5EncoderModel

from imagen_ft.models import presets
from tests.benchmarks.harness import arguments, compare, matrix_peak, report, synchronize
from tests.parity.torch_weights import relative_error, variables
from tests.support.transformers_t5 import RENAMES

TOKENS = 77


def main() -> None:
    """Runs the cases."""
    args = arguments(__doc__, preset="t5_small", batch="1,16")
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = presets.make(args.preset, dtype=jnp.dtype(args.dtype))
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    fields = {name: getattr(model, name) for name in names}
    torch.manual_seed(0)
    theirs = T5EncoderModel(T5Config(**fields, feed_forward_proj="gated-gelu")).eval()
    shapes = presets.parameter_shapes(args.preset)
    params = variables(theirs.requires_grad_(False), {"params": shapes}, RENAMES)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, args.dtype), params)
    theirs = theirs.to(device, getattr(torch, args.dtype))
    call = torch.compile(theirs) if device == "cuda" else theirs
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    print(f"{millions:.1f}M parameters, {args.dtype}, {device}")

    results = []
    for batch in args.batch:
        rng = np.random.default_rng(0)
        tokens = rng.integers(3, model.vocab_size, (batch, TOKENS)).astype(np.int32)
        mask = np.arange(TOKENS)[None] < rng.integers(3, TOKENS, (batch, 1))
        program = jax.jit(model.apply).lower(params, tokens, mask).compile()
        inputs = torch.from_numpy(tokens).long().to(device), torch.from_numpy(mask).to(device)

        def peer(inputs=inputs):
            with torch.inference_mode():
                return synchronize(call(input_ids=inputs[0], attention_mask=inputs[1])[0])

        ours = functools.partial(program, params, jnp.asarray(tokens), jnp.asarray(mask))
        error = relative_error(np.asarray(ours(), np.float32), peer().float().cpu())
        results.append(
            compare(
                f"{args.preset}, batch {batch}",
                lambda ours=ours: ours().block_until_ready(),
                peer,
                error=error,
                work=batch,
                unit="prompts/s",
                flops=program.cost_analysis()["flops"],
                repeats=5 if args.quick else 15,
            )
        )
    report(results, matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
