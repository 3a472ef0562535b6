"""Caption metrics: `metrics.measure_captions` gives all of them; `cider` rewards training and needs no other module.

Nothing is imported here: a training that is rewarded with CIDEr-D must not hang on how captions are measured.
"""
