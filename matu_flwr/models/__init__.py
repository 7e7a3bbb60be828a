"""What a run gives: task vectors and heads as files, and the fine-tuned models made of them."""
