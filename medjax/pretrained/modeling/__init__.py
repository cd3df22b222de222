"""PyTorch code of our networks. An export gets the parts that it needs as one file.

The modules import torch, so no other code imports them:
`medjax.pretrained.modeling_file` joins their text. A part therefore imports only from
other parts, by name, and the names of all parts differ.
"""
