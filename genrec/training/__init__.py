"""Fine-tuning: samples and batches, losses with a named softmax, and a training that survives being killed.

The one entry is :func:`genrec.training.finetune.finetune`.
"""
