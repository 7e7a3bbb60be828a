"""Contrastive pre-training of the small default on image-caption pairs: `matu pretrain`."""
