"""Training shards: plain WebDataset tars, read through an index of offsets and memory mapping.

`{key}.grid.npy` float16 [64, D], `{key}.codes.npy` uint16 [64], `{key}.json` (image_id, split, captions,
objects, width, height) and `{key}.jpg`. Tar members are not compressed, so an array is a slice of the mapped
file: no parsing, no copy but the batch's own, any order. Any WebDataset reader opens the same files.

`index.json`: version, feature_dim, and for each split its shards: name, size in bytes, sha256, count, keys, and
members: for each key [offset, length] of the four in the order above (of an array's values, not its header).
"""
