"""Names that LAVIS imports from transformers and that transformers 5 no longer has.

Each is a working implementation, supplied only where it is missing, so an old transformers is left alone.
Signatures are those of transformers 4.26, which LAVIS was written against.
"""

import importlib
import importlib.util
import math
import sys
import types


def find_pruneable_heads_and_indices(heads, n_heads: int, head_size: int, already_pruned_heads: set):
    """Say which attention heads are still to be pruned, and which rows of the projection stay.

    Args:
        heads: those to prune, numbered as in the unpruned layer.
        n_heads: how many the layer has now.
        head_size: width of one head.
        already_pruned_heads: those pruned earlier, numbered as in the unpruned layer.

    Returns:
        the set of heads not pruned before, and an int64 tensor of the row indices that stay.
    """
    import torch

    remaining = set(heads) - already_pruned_heads
    keep = torch.ones(n_heads, head_size, dtype=torch.bool)
    for head in remaining:
        keep[head - sum(pruned < head for pruned in already_pruned_heads)] = False
    return remaining, keep.flatten().nonzero().flatten()


def prune_linear_layer(layer, index, dim: int = 0):
    """Give a new ``torch.nn.Linear`` with only the rows (dim 0) or columns (dim 1) of ``layer`` listed in ``index``.

    Args:
        layer: ``torch.nn.Linear`` with weight [out, in].
        index: int64 tensor of the rows or columns that stay.
        dim: 0 keeps outputs, 1 keeps inputs.
    """
    import torch

    weight = layer.weight.index_select(dim, index.to(layer.weight.device)).detach()
    pruned = torch.nn.Linear(weight.size(1), weight.size(0), bias=layer.bias is not None)
    pruned = pruned.to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        pruned.weight.copy_(weight)
        if layer.bias is not None:
            pruned.bias.copy_(layer.bias if dim == 1 else layer.bias[index.to(layer.bias.device)])
    return pruned


def apply_chunking_to_forward(forward_fn, chunk_size: int, chunk_dim: int, *input_tensors):
    """``forward_fn(*input_tensors)``, computed in chunks of ``chunk_size`` along ``chunk_dim`` (0: all at once).

    Raises:
        ValueError: the inputs differ in length along ``chunk_dim``, or ``chunk_size`` does not divide it.
    """
    import torch

    if chunk_size <= 0:
        return forward_fn(*input_tensors)
    lengths = {tensor.shape[chunk_dim] for tensor in input_tensors}
    if len(lengths) != 1:
        raise ValueError(f"inputs differ in length along dimension {chunk_dim}: {sorted(lengths)}")
    (length,) = lengths
    if length % chunk_size:
        raise ValueError(f"length {length} of dimension {chunk_dim} is not a multiple of chunk size {chunk_size}")
    chunks = zip(*(tensor.split(chunk_size, dim=chunk_dim) for tensor in input_tensors), strict=True)
    return torch.cat([forward_fn(*chunk) for chunk in chunks], dim=chunk_dim)


def get_device_map(n_layers: int, devices) -> dict:
    """``n_layers`` layer numbers spread evenly, in order, over ``devices``: {device: [layer, ...]}."""
    devices = list(devices)
    per_device = math.ceil(n_layers / len(devices))
    layers = list(range(n_layers))
    return {device: layers[i * per_device : (i + 1) * per_device] for i, device in enumerate(devices)}


def assert_device_map(device_map: dict, num_blocks: int) -> None:
    """Check that ``device_map`` ({device: [layer, ...]}) places each of ``num_blocks`` layers exactly once.

    Raises:
        ValueError: A layer is missing, placed twice, or does not exist.
    """
    placed = [layer for layers in device_map.values() for layer in layers]
    twice = sorted({layer for layer in placed if placed.count(layer) > 1})
    missing = sorted(set(range(num_blocks)) - set(placed))
    unknown = sorted(set(placed) - set(range(num_blocks)))
    if twice or missing or unknown:
        raise ValueError(
            f"device map for {num_blocks} layers: placed twice {twice}, missing {missing}, unknown {unknown}"
        )


def expand_mask(mask, dtype, tgt_len: int | None = None):
    """Give a padding mask as an additive attention mask.

    Args:
        mask: [batch, source], 1 for a real token and 0 for padding.
        dtype: floating-point dtype of the result.
        tgt_len: number of queries; the source length by default.

    Returns:
        [batch, 1, target, source]: 0 where a token may be attended to, the least value of ``dtype`` elsewhere.
    """
    import torch

    batch, source = mask.size()
    hidden = (mask == 0)[:, None, None, :].expand(batch, 1, tgt_len or source, source)
    visible = torch.zeros(hidden.shape, dtype=dtype, device=mask.device)
    return visible.masked_fill(hidden, torch.finfo(dtype).min)


_PRUNING = {
    "find_pruneable_heads_and_indices": find_pruneable_heads_and_indices,
    "prune_linear_layer": prune_linear_layer,
}
_NAMES = {
    "transformers.modeling_utils": {"apply_chunking_to_forward": apply_chunking_to_forward, **_PRUNING},
    "transformers.pytorch_utils": _PRUNING,
    "transformers.models.clip.modeling_clip": {"_expand_mask": expand_mask},  # LAVIS's git main
}
_MODULES = {
    "transformers.utils.model_parallel_utils": {
        "assert_device_map": assert_device_map,
        "get_device_map": get_device_map,
    },
}


def supply_missing_names() -> list[str]:
    """Give the installed transformers the names that LAVIS imports from it and that it lacks.

    Returns:
        The dotted names that were supplied by this call; empty where nothing was missing.
    """
    supplied = []
    for module_name, names in _NAMES.items():
        module = importlib.import_module(module_name)
        for name in names:
            if not hasattr(module, name):
                setattr(module, name, names[name])
                supplied.append(f"{module_name}.{name}")
    for module_name, names in _MODULES.items():
        if module_name not in sys.modules and importlib.util.find_spec(module_name) is None:
            module = types.ModuleType(module_name, "Supplied for LAVIS; gone from transformers 5.")
            vars(module).update(names)
            sys.modules[module_name] = module
            supplied.append(module_name)
    return supplied
