"""The network and its loss.

In: images (B, C, H, W) in pixel units 0..255, and masks. Out: logits at the image's own size (`unet`, `inference`), a
loss divided by counts of the global batch (`losses`), and a folder with weights, architecture and classes that predicts
on its own (`saved_model`).
"""
