"""Original checkpoints: their names and shapes, written down apart from our tables.

They follow the original modules' construction, block by block; that they are right is
held against diffusers' conversion functions, which take nothing else.
"""

import itertools

import numpy as np

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CONTROLNET = "control_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."

SD15 = {
    "widths": (320, 640, 1280, 1280),
    "layers": 2,
    "attends": (True, True, True, False),
    "text": 768,
    "linear": False,
    "vae": {"widths": (128, 256, 512, 512), "layers": 2},
    "clip": {"width": 768, "layers": 12, "words": 49408},
    "hint": (16, 32, 96, 256),
}
SD1 = {
    "widths": (32, 64),
    "layers": 1,
    "attends": (True, False),
    "text": 64,
    "linear": False,
    "vae": {"widths": (32, 64), "layers": 1},
    "clip": {"width": 64, "layers": 2, "words": 900},
    "hint": (4, 8, 8, 16),
}
SD2 = SD1 | {
    "widths": (64, 128),
    "attends": (True, True),
    "layers": 2,
    "linear": True,
}


class Shapes(dict):
    """Shapes by name, with the layers that networks are made of."""

    def norm(self, name, width):
        self[f"{name}.weight"] = self[f"{name}.bias"] = (width,)

    def conv(self, name, into, out, side=3):
        self[f"{name}.weight"] = (out, into, side, side)
        self[f"{name}.bias"] = (out,)

    def dense(self, name, into, out, bias=True):
        self[f"{name}.weight"] = (out, into)
        if bias:
            self[f"{name}.bias"] = (out,)

    def add(self, prefix, other):
        self.update({prefix + name: shape for name, shape in other.items()})
        return self

    def resnet(self, name, into, out, time):
        self.norm(f"{name}.in_layers.0", into)
        self.conv(f"{name}.in_layers.2", into, out)
        self.dense(f"{name}.emb_layers.1", time, out)
        self.norm(f"{name}.out_layers.0", out)
        self.conv(f"{name}.out_layers.3", out, out)
        if into != out:
            self.conv(f"{name}.skip_connection", into, out, 1)

    def transformer(self, name, width, sizes):
        self.norm(f"{name}.norm", width)
        for projection in ("proj_in", "proj_out"):
            if sizes["linear"]:
                self.dense(f"{name}.{projection}", width, width)
            else:
                self.conv(f"{name}.{projection}", width, width, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, context in (("attn1", width), ("attn2", sizes["text"])):
            self.dense(f"{block}.{attention}.to_q", width, width, bias=False)
            self.dense(f"{block}.{attention}.to_k", context, width, bias=False)
            self.dense(f"{block}.{attention}.to_v", context, width, bias=False)
            self.dense(f"{block}.{attention}.to_out.0", width, width)
        self.dense(f"{block}.ff.net.0.proj", width, 8 * width)
        self.dense(f"{block}.ff.net.2", 4 * width, width)
        for i in (1, 2, 3):
            self.norm(f"{block}.norm{i}", width)

    def encoder(self, sizes):
        """Add `input_blocks` and `middle_block`; return the width of each block."""
        widths = sizes["widths"]
        time = 4 * widths[0]
        self.dense("time_embed.0", widths[0], time)
        self.dense("time_embed.2", time, time)
        self.conv("input_blocks.0.0", 4, widths[0])
        made = [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(sizes["layers"]):
                block = f"input_blocks.{len(made)}"
                self.resnet(f"{block}.0", made[-1], width, time)
                if sizes["attends"][level]:
                    self.transformer(f"{block}.1", width, sizes)
                made.append(width)
            if level < len(widths) - 1:
                self.conv(f"input_blocks.{len(made)}.0.op", width, width)
                made.append(width)
        self.resnet("middle_block.0", width, width, time)
        self.transformer("middle_block.1", width, sizes)
        self.resnet("middle_block.2", width, width, time)
        return made


def unet(sizes):
    shapes = Shapes()
    skips = shapes.encoder(sizes)
    width, block = skips[-1], 0
    for level in reversed(range(len(sizes["widths"]))):
        for i in range(sizes["layers"] + 1):
            name, out = f"output_blocks.{block}", sizes["widths"][level]
            time = 4 * sizes["widths"][0]
            shapes.resnet(f"{name}.0", width + skips.pop(), out, time)
            width, place = out, 1
            if sizes["attends"][level]:
                shapes.transformer(f"{name}.1", width, sizes)
                place = 2
            if level and i == sizes["layers"]:
                shapes.conv(f"{name}.{place}.conv", width, width)
            block += 1
    shapes.norm("out.0", width)
    shapes.conv("out.2", width, 4)
    return shapes


def controlnet(sizes):
    shapes = Shapes()
    made = shapes.encoder(sizes)
    for i, width in enumerate(made):
        shapes.conv(f"zero_convs.{i}.0", width, width, 1)
    shapes.conv("middle_block_out.0", made[-1], made[-1], 1)
    hint = sizes["hint"]
    chain = [3, hint[0]]
    for before, after in itertools.pairwise(hint):
        chain += [before, after]
    chain.append(made[0])
    for i, (into, out) in enumerate(itertools.pairwise(chain)):
        shapes.conv(f"input_hint_block.{2 * i}", into, out)
    return shapes


def vae(sizes):
    shapes = Shapes()
    widths, layers = sizes["vae"]["widths"], sizes["vae"]["layers"]

    def resnet(name, into, out):
        shapes.norm(f"{name}.norm1", into)
        shapes.conv(f"{name}.conv1", into, out)
        shapes.norm(f"{name}.norm2", out)
        shapes.conv(f"{name}.conv2", out, out)
        if into != out:
            shapes.conv(f"{name}.nin_shortcut", into, out, 1)

    def middle(name, width):
        resnet(f"{name}.block_1", width, width)
        shapes.norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            shapes.conv(f"{name}.attn_1.{part}", width, width, 1)
        resnet(f"{name}.block_2", width, width)

    shapes.conv("encoder.conv_in", 3, widths[0])
    width = widths[0]
    for level, out in enumerate(widths):
        for i in range(layers):
            resnet(f"encoder.down.{level}.block.{i}", width, out)
            width = out
        if level < len(widths) - 1:
            shapes.conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder.mid", width)
    shapes.norm("encoder.norm_out", width)
    shapes.conv("encoder.conv_out", width, 8)
    shapes.conv("decoder.conv_in", 4, width)
    middle("decoder.mid", width)
    for level in reversed(range(len(widths))):
        for i in range(layers + 1):
            resnet(f"decoder.up.{level}.block.{i}", width, widths[level])
            width = widths[level]
        if level:
            shapes.conv(f"decoder.up.{level}.upsample.conv", width, width)
    shapes.norm("decoder.norm_out", width)
    shapes.conv("decoder.conv_out", width, 3)
    shapes.conv("quant_conv", 8, 8, 1)
    shapes.conv("post_quant_conv", 4, 4, 1)
    return shapes


def clip(sizes):
    shapes = Shapes()
    width = sizes["clip"]["width"]
    shapes["text_model.embeddings.token_embedding.weight"] = (
        sizes["clip"]["words"],
        width,
    )
    shapes["text_model.embeddings.position_embedding.weight"] = (77, width)
    for i in range(sizes["clip"]["layers"]):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes.dense(f"{layer}.self_attn.{part}", width, width)
        shapes.norm(f"{layer}.layer_norm1", width)
        shapes.dense(f"{layer}.mlp.fc1", width, 4 * width)
        shapes.dense(f"{layer}.mlp.fc2", 4 * width, width)
        shapes.norm(f"{layer}.layer_norm2", width)
    shapes.norm("text_model.final_layer_norm", width)
    return shapes


def open_clip(sizes):
    """Add one layer to what is used, as SD2's checkpoints have."""
    shapes = Shapes()
    width = sizes["clip"]["width"]
    shapes["positional_embedding"] = (77, width)
    shapes["text_projection"] = (width, width)
    shapes["logit_scale"] = ()
    shapes["token_embedding.weight"] = (sizes["clip"]["words"], width)
    for i in range(sizes["clip"]["layers"] + 1):
        layer = f"transformer.resblocks.{i}"
        shapes[f"{layer}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{layer}.attn.in_proj_bias"] = (3 * width,)
        shapes.dense(f"{layer}.attn.out_proj", width, width)
        shapes.norm(f"{layer}.ln_1", width)
        shapes.norm(f"{layer}.ln_2", width)
        shapes.dense(f"{layer}.mlp.c_fc", width, 4 * width)
        shapes.dense(f"{layer}.mlp.c_proj", 4 * width, width)
    shapes.norm("ln_final", width)
    return shapes


def whole(sizes):
    """Return the shapes of a whole checkpoint's weights."""
    shapes = Shapes().add(UNET, unet(sizes)).add(VAE, vae(sizes))
    if sizes["linear"]:
        return shapes.add(OPEN_CLIP, open_clip(sizes))
    return shapes.add(CLIP, clip(sizes))


def extras(shapes):
    """Return what checkpoints hold besides: none of it is a weight of ours."""
    steps = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod")
    steps += ("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod")
    steps += ("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "logvar")
    steps += ("posterior_variance", "posterior_log_variance_clipped", "lvlb_weights")
    steps += ("posterior_mean_coef1", "posterior_mean_coef2")
    rng = np.random.default_rng(1)
    found = {name: rng.standard_normal(10, np.float32) for name in steps}
    found |= {
        "model_ema." + name.removeprefix("model.").replace(".", ""): np.ones(
            shape, np.float32
        )
        for name, shape in shapes.items()
        if name.startswith(UNET)
    }
    return found | {
        "model_ema.decay": np.float32(0.9999).reshape(()),
        "model_ema.num_updates": np.int32(7).reshape(()),
        CLIP + "text_model.embeddings.position_ids": np.arange(77)[None],
        VAE + "loss.logvar": np.zeros((), np.float32),
        VAE + "loss.perceptual_loss.net.slice1.0.weight": np.ones((2, 3), np.float32),
    }


def drawn(shapes, dtype=np.float32):
    """Return weights of these shapes, every one another."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32).astype(dtype)
        for name, shape in shapes.items()
    }
