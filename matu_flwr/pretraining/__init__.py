"""Pre-trains the small default backbone on pairs of images and captions (`matu pretrain`)."""
