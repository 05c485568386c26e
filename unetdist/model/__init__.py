"""The U-Net and the blocks that it is built from."""
