"""The results of a run: task vectors and heads as files, and the fine-tuned models that are built from them."""
